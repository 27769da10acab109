"""Key phrases of one document: the C-value of Frantzi, Ananiadou and Mima (2000), identifiers split into words in code.

A phrase counts by its frequency and its length, less what it owes to longer phrases that contain it: "ack
wait" inside "ack wait seconds" is not counted for both. The logarithm is taken of the length plus one, as
Barrón-Cedeño et al. (2009) do, so that single words can stand beside phrases; they may fill only a third of the places.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

import msgspec

from callboard.agents.digest.stopword import CODE, ENGLISH
from callboard.agents.digest.text import split_identifier, words_of

MAX_PHRASE_WORDS: Final = 3
_MAX_TOKENS: Final = 60_000
_MIN_WORD_CHARS: Final = 3
_MIN_PLURAL_CHARS: Final = 5  # the s of a shorter word is mostly its own: gas, lens
_MAX_WORD_CHARS: Final = 32

_LONG_TOKENS: Final = 300
_PUNCTUATION = re.compile(r"[^\w\s'\u2019-]+")

_Words = tuple[str, ...]


class Phrase(msgspec.Struct, frozen=True, kw_only=True):
    """A key phrase, its weight (0 to 1, 1 is the document's best) and how often it occurs."""

    text: str
    weight: float
    count: int


class Keyphrases(NamedTuple):
    """The best phrases, and the counts of more of them for weighing over a whole corpus."""

    best: list[Phrase]
    terms: dict[str, int]


def prose_chunks(sentences: Iterable[str]) -> list[list[str]]:
    """Return each stretch between punctuation as the list of its words, as written."""
    pieces = (piece for sentence in sentences for piece in _PUNCTUATION.split(sentence))
    return [words for piece in pieces if (words := words_of(piece))]


def identifier_chunks(identifiers: Iterable[str]) -> list[list[str]]:
    """Return each identifier as the list of its words, so that ``ack_wait_s`` counts as the phrase "ack wait"."""
    chunks = (split_identifier(name) for name in identifiers)
    return [
        words
        for chunk in chunks
        if (words := [word for word in chunk if len(word) >= _MIN_WORD_CHARS and word not in CODE])
    ]


def keyphrases(
    chunks: Sequence[Sequence[str]], *, limit: int = 10, terms: int = 60, is_code: bool = False
) -> Keyphrases:
    """Return the best ``limit`` phrases of up to three words and the counts of the best ``terms``.

    Args:
        chunks: Words by sentence (or by identifier); phrases never cross chunks. Beyond 60,000 words the rest is not
            read.
        limit: How many phrases to return.
        terms: How many phrases to return with their counts only.
        is_code: Whether the vocabulary of programming languages are stop words too.
    """
    kept = _cap(chunks)
    counts, shown = _count(kept, ENGLISH | CODE if is_code else ENGLISH)
    values = _c_values(counts)
    if sum(map(len, kept)) > _LONG_TOKENS:
        # In a long text what is said once is chance; in a short one it is all there is.
        values = {phrase: value for phrase, value in values.items() if len(phrase) == 1 or counts[phrase] > 1}
    # Ties keep the order of the text: what is said first matters more.
    ranked = sorted(values, key=lambda phrase: -values[phrase])
    chosen = _choose(ranked, limit=limit)
    top = values[chosen[0]] if chosen else 1.0
    best = [
        Phrase(text=shown[phrase], weight=round(values[phrase] / top, 3), count=counts[phrase])
        for phrase in sorted(chosen, key=lambda phrase: -values[phrase])
    ]
    return Keyphrases(best, {shown[phrase]: counts[phrase] for phrase in ranked[:terms]})


def _cap(chunks: Sequence[Sequence[str]]) -> list[Sequence[str]]:
    kept: list[Sequence[str]] = []
    total = 0
    for chunk in chunks:
        kept.append(chunk)
        total += len(chunk)
        if total >= _MAX_TOKENS:
            break
    return kept


def _count(chunks: Iterable[Sequence[str]], stop: frozenset[str]) -> tuple[Counter[_Words], dict[_Words, str]]:
    """Count every run of up to three content words, a plural as its singular, and remember how it was first written."""
    counts: Counter[_Words] = Counter()
    shown: dict[_Words, str] = {}
    for chunk in chunks:
        stems = [_stem(word, stop) for word in chunk]
        for begin in range(len(stems)):
            for end in range(begin + 1, min(begin + MAX_PHRASE_WORDS, len(stems)) + 1):
                phrase = tuple(stems[begin:end])
                if not stems[end - 1] or len(set(phrase)) < len(phrase):
                    break
                counts[phrase] += 1
                if phrase not in shown:
                    shown[phrase] = " ".join(map(_as_shown, chunk[begin:end]))
    return counts, shown


def _stem(word: str, stop: frozenset[str]) -> str:
    """Return the word in lower case, a plural without its s, and "" for a word that carries no topic."""
    lower = word.lower().replace("\u2019", "'")
    if not _MIN_WORD_CHARS <= len(lower) <= _MAX_WORD_CHARS or lower in stop:
        return ""
    lower = lower.removesuffix("'s")
    if len(lower) >= _MIN_PLURAL_CHARS and lower.endswith("s") and not lower.endswith(("ss", "us", "is")):
        lower = lower[:-1]
    return "" if lower in stop else lower


def _as_shown(word: str) -> str:
    """Keep names and acronyms as written, lower the rest: JetStream, HTTP, but worker."""
    return word if any(letter.isupper() for letter in word[1:]) else word.lower()


def _c_values(counts: Counter[_Words]) -> dict[_Words, float]:
    inside: dict[_Words, list[int]] = defaultdict(list)
    for phrase, count in counts.items():
        for size in range(1, len(phrase)):
            for begin in range(len(phrase) - size + 1):
                inside[phrase[begin : begin + size]].append(count)
    values: dict[_Words, float] = {}
    for phrase, count in counts.items():
        longer = inside.get(phrase)
        free = count - sum(longer) / len(longer) if longer else float(count)
        values[phrase] = math.log2(len(phrase) + 1) * free
    return values


def _choose(ranked: Sequence[_Words], *, limit: int) -> list[_Words]:
    """Take the best, singles to a third, and none that repeats words of a better one; then fill up with singles."""
    chosen: list[_Words] = []
    spare: list[_Words] = []
    singles = 0
    for phrase in ranked:
        if len(chosen) == limit:
            return chosen
        words = set(phrase)
        if any(len(words & set(other)) * 2 > len(words) for other in chosen):
            continue
        if len(phrase) == 1 and singles == max(limit // 3, 1):
            spare.append(phrase)
            continue
        singles += len(phrase) == 1
        chosen.append(phrase)
    return chosen + spare[: limit - len(chosen)]
