"""From many digests to one picture of the folder."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from callboard.agents.digest.digest import Digest
from callboard.agents.digest.modulegraph import Module, module_graph
from callboard.agents.digest.shingle import similar_pairs
from callboard.agents.digest.structure import Lines

WORDS_PER_MINUTE: Final = 238
"""Silent reading of English non-fiction, by Brysbaert's meta-analysis (2019)."""

LEAST_SIMILARITY: Final = 0.6
_MAX_PAIRS: Final = 1_000
_FEW_FILES: Final = 3  # with more, a topic is what two files share
_MIN_SHINGLED_WORDS: Final = 20
_STEPS: Final = (0, 1 << 8, 1 << 10, 1 << 12, 1 << 14, 1 << 16, 1 << 18, 1 << 20)
_STEP_NAMES: Final = (
    "under 256 B", "256 B \u2013 1 KB", "1 \u2013 4 KB", "4 \u2013 16 KB", "16 \u2013 64 KB", "64 \u2013 256 KB",
    "256 KB \u2013 1 MB", "over 1 MB",
)  # fmt: skip


class LanguageTotal(msgspec.Struct, frozen=True, kw_only=True):
    """What a folder holds of one language."""

    name: str
    kind: str
    files: int
    size_bytes: int
    lines: int
    code_lines: int


class Topic(msgspec.Struct, frozen=True, kw_only=True):
    """A phrase that marks this folder: its weight (1 is the best), its files and its count over all of them."""

    text: str
    weight: float
    files: int
    count: int


class Pair(msgspec.Struct, frozen=True, kw_only=True):
    """Two files that are nearly, or to the byte, the same. ``similarity`` is 0 to 1."""

    one: str
    other: str
    similarity: float
    is_identical: bool


class Bin(msgspec.Struct, frozen=True, kw_only=True):
    """One bar of the histogram of file sizes."""

    label: str
    files: int


class Corpus(msgspec.Struct, frozen=True, kw_only=True):
    """The whole folder. ``pairs`` holds at most 1,000 of ``pairs_total``; ``reading_minutes`` counts prose only."""

    files: int
    size_bytes: int
    lines: Lines
    words: int
    reading_minutes: float
    languages: list[LanguageTotal]
    topics: list[Topic]
    pairs: list[Pair]
    pairs_total: int
    sizes: list[Bin]
    modules: list[Module]
    outside: list[tuple[str, int]]
    digests: list[Digest]


def merge(digests: Iterable[Digest]) -> Corpus:
    """Merge digests into one corpus; the order of the input does not matter.

    Of two digests with the same path the one with the lower hash is kept, so a digest handed in twice counts once.
    About 1 s for 1,000 files.
    """
    by_path: dict[str, Digest] = {}
    for digest in sorted(digests, key=lambda digest: (digest.path, digest.sha256)):
        by_path.setdefault(digest.path, digest)
    files = list(by_path.values())
    pairs = _pairs(files)
    graph = module_graph({file.path: file.imports for file in files if file.language == "Python"})
    prose_words = sum(file.words for file in files if file.kind == "prose")
    return Corpus(
        files=len(files),
        size_bytes=sum(file.size_bytes for file in files),
        lines=_sum_lines(files),
        words=sum(file.words for file in files),
        reading_minutes=round(prose_words / WORDS_PER_MINUTE, 1),
        languages=_languages(files),
        topics=_topics(files),
        pairs=pairs[:_MAX_PAIRS],
        pairs_total=len(pairs),
        sizes=_sizes(files),
        modules=graph.modules,
        outside=graph.outside,
        digests=files,
    )


def _sum_lines(files: Sequence[Digest]) -> Lines:
    return Lines(
        total=sum(file.lines.total for file in files),
        code=sum(file.lines.code for file in files),
        comment=sum(file.lines.comment for file in files),
        blank=sum(file.lines.blank for file in files),
        longest_chars=max((file.lines.longest_chars for file in files), default=0),
    )


def _languages(files: Sequence[Digest]) -> list[LanguageTotal]:
    groups: dict[str, list[Digest]] = defaultdict(list)
    for file in files:
        groups[file.language].append(file)
    totals = [
        LanguageTotal(
            name=name,
            kind=next((file.kind for file in group if file.kind != "empty"), "empty"),
            files=len(group),
            size_bytes=sum(file.size_bytes for file in group),
            lines=sum(file.lines.total for file in group),
            code_lines=sum(file.lines.code for file in group),
        )
        for name, group in groups.items()
    ]
    return sorted(totals, key=lambda total: (-total.size_bytes, total.name))


def _topics(files: Sequence[Digest], *, limit: int = 30) -> list[Topic]:
    """Weigh phrases by tf-idf (Salton and Buckley, 1988): (1 + log tf) * log((1 + N) / df), summed over files.

    Copies of a file speak once, and a phrase must stand in two files where there are more than a few.
    """
    distinct = {file.sha256: file for file in reversed(files)}.values()
    weights: dict[str, float] = defaultdict(float)
    spread: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    shown: dict[str, str] = {}
    for file in distinct:
        for text in file.terms:
            spread[text.lower()] += 1
            shown.setdefault(text.lower(), text)
    total = len(distinct)
    for file in distinct:
        for text, count in file.terms.items():
            words = text.count(" ") + 1
            # Longer phrases say more; the same factor as in the C-value, so that single words do not fill the list.
            weights[text.lower()] += (
                (1 + math.log(count)) * math.log((1 + total) / spread[text.lower()]) * math.log2(words + 1)
            )
            counts[text.lower()] += count
    least = 2 if total > _FEW_FILES else 1
    ranked = sorted((key for key in weights if spread[key] >= least), key=lambda key: (-weights[key], key))
    chosen = _distinct(ranked, limit)
    top = weights[chosen[0]] or 1.0 if chosen else 1.0
    return [
        Topic(text=shown[key], weight=round(weights[key] / top, 3), files=spread[key], count=counts[key])
        for key in chosen
    ]


def _distinct(ranked: Sequence[str], limit: int) -> list[str]:
    chosen: list[str] = []
    taken: list[frozenset[str]] = []
    singles = 0
    for key in ranked:
        words = frozenset(word.rstrip("s") for word in key.split())
        is_single = len(words) == 1
        if any(len(words & other) * 2 > len(words) for other in taken) or (is_single and singles == limit // 4):
            continue
        singles += is_single
        taken.append(words)
        chosen.append(key)
        if len(chosen) == limit:
            break
    return chosen


def _pairs(files: Sequence[Digest]) -> list[Pair]:
    same: dict[str, list[Digest]] = defaultdict(list)
    for file in files:
        if file.size_bytes:
            same[file.sha256].append(file)
    pairs = [
        Pair(one=group[0].path, other=copy.path, similarity=1.0, is_identical=True)
        for group in same.values()
        for copy in group[1:]
    ]
    # One file of each set of copies stands for all of them: 50 copies are 49 pairs, not 1,225.
    signatures = {group[0].path: group[0].signature for group in same.values() if group[0].words >= _MIN_SHINGLED_WORDS}
    pairs += [
        Pair(one=one, other=other, similarity=round(similarity, 3), is_identical=False)
        for one, other, similarity in similar_pairs(signatures, least=LEAST_SIMILARITY)
    ]
    return sorted(pairs, key=lambda pair: (not pair.is_identical, -pair.similarity, pair.one, pair.other))


def _sizes(files: Sequence[Digest]) -> list[Bin]:
    counts = [0] * len(_STEPS)
    for file in files:
        counts[max(index for index, step in enumerate(_STEPS) if file.size_bytes >= step)] += 1
    return [Bin(label=label, files=count) for label, count in zip(_STEP_NAMES, counts, strict=True)]
