"""The most telling sentences of a document: TextRank (Mihalcea and Tarau, 2004).

Sentences are nodes, shared words are edges weighted by the paper's length-normalised overlap, and a weighted PageRank
with damping 0.85 picks the sentences that the rest of the text agrees with. Deterministic: no random start, ties go to
the earlier sentence.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Final

import msgspec

from callboard.agents.digest.stopword import ENGLISH
from callboard.agents.digest.text import Sentence, words_of

_MAX_NODES: Final = 160  # the graph is quadratic: 160 sentences take about 40 ms, 5,000 would take a minute
_MIN_WORDS: Final = 6
_MIN_WORD_CHARS: Final = 3
_MAX_WORDS: Final = 45
_MAX_CHARS: Final = 320
_DAMPING: Final = 0.85
_ROUNDS: Final = 40
_TOLERANCE: Final = 1e-5
_TOO_ALIKE: Final = 0.6


class Telling(msgspec.Struct, frozen=True, kw_only=True):
    """A telling sentence, verbatim but for white space and inline markup, and its line counted from 1."""

    text: str
    line: int


def telling_sentences(sentences: Sequence[Sentence], *, limit: int = 3) -> list[Telling]:
    """Return up to ``limit`` sentences in the order of the text.

    A document with more than 160 usable sentences is represented by its first 60 and 100 spread evenly over the rest.
    """
    nodes = _sample([sentence for sentence in sentences if _is_usable(sentence.text)])
    bags = [frozenset(_content(sentence.text)) for sentence in nodes]
    ranks = _rank(bags)
    order = sorted(range(len(nodes)), key=lambda node: (-ranks[node], node))
    chosen: list[int] = []
    for node in order:
        if len(chosen) == limit:
            break
        if bags[node] and all(_overlap(bags[node], bags[other]) < _TOO_ALIKE for other in chosen):
            chosen.append(node)
    return [Telling(text=nodes[node].text, line=nodes[node].line) for node in sorted(chosen)]


def _is_usable(text: str) -> bool:
    if len(text) > _MAX_CHARS or not text[-1:].strip("\"')]\u201d`") or text[-1] not in ".!?:)\"'\u3002\u201d`":
        return False
    words = words_of(text)
    solid = "".join(text.split())
    letters = sum(map(str.isalpha, solid))
    return _MIN_WORDS <= len(words) <= _MAX_WORDS and letters * 100 >= len(solid) * 85


def _sample(usable: list[Sentence]) -> list[Sentence]:
    if len(usable) <= _MAX_NODES:
        return usable
    head, rest = usable[:60], usable[60:]
    wanted = _MAX_NODES - len(head)
    return head + [rest[index * len(rest) // wanted] for index in range(wanted)]


def _content(text: str) -> list[str]:
    return [word for word in map(str.lower, words_of(text)) if len(word) >= _MIN_WORD_CHARS and word not in ENGLISH]


def _overlap(one: frozenset[str], other: frozenset[str]) -> float:
    return len(one & other) / max(min(len(one), len(other)), 1)


def _rank(bags: Sequence[frozenset[str]]) -> list[float]:
    edges = _edges(bags)
    out = [math.fsum(weight for _, weight in row) for row in edges]
    ranks = [1.0] * len(bags)
    for _ in range(_ROUNDS):
        new = [
            (1 - _DAMPING) + _DAMPING * sum(weight * ranks[other] / out[other] for other, weight in row)
            for row in edges
        ]
        moved = max((abs(a - b) for a, b in zip(new, ranks, strict=True)), default=0.0)
        ranks = new
        if moved < _TOLERANCE:
            break
    return ranks


def _edges(bags: Sequence[frozenset[str]]) -> list[list[tuple[int, float]]]:
    shared: dict[tuple[int, int], int] = defaultdict(int)
    holders: dict[str, list[int]] = defaultdict(list)
    for node, bag in enumerate(bags):
        for word in sorted(bag):
            for other in holders[word]:
                shared[other, node] += 1
            holders[word].append(node)
    edges: list[list[tuple[int, float]]] = [[] for _ in bags]
    for (one, other), count in sorted(shared.items()):
        # A sentence of one content word has log 1 = 0; adding one keeps the paper's normaliser finite.
        weight = count / (math.log(1 + len(bags[one])) + math.log(1 + len(bags[other])))
        edges[one].append((other, weight))
        edges[other].append((one, weight))
    return edges
