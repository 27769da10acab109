"""Near-duplicates: shingles of words and MinHash (Broder, 1997), candidates by banding (Leskovec et al., 2014).

Two texts are alike as far as their sets of five-word shingles overlap (Jaccard). A signature of 128 minima under fixed
hash functions estimates that from half a kilobyte a file; banding finds the pairs worth comparing without comparing
all.
"""

from __future__ import annotations

import hashlib
import heapq
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

SHINGLE_WORDS: Final = 5
PERMUTATIONS: Final = 128
BANDS: Final = 32
_ROWS: Final = PERMUTATIONS // BANDS
_PRIME: Final = (1 << 61) - 1
_MASK: Final = (1 << 32) - 1
_MAX_SHINGLES: Final = 3_000
_MAX_WORDS: Final = 400_000
_MAX_BUCKET: Final = 60
_TOKEN = re.compile(r"\w+")


def shingles(text: str, *, words: int = SHINGLE_WORDS) -> frozenset[int]:
    """Return the 64-bit hashes of all runs of ``words`` words, letter case ignored; a shorter text is one shingle.

    Only the first 400,000 words are read.
    """
    tokens = [match[0] for match in _limit(_TOKEN.finditer(text.lower()), _MAX_WORDS)]
    if not tokens:
        return frozenset()
    last = max(len(tokens) - words, 0)
    return frozenset(_hash64(" ".join(tokens[begin : begin + words])) for begin in range(last + 1))


def jaccard(one: frozenset[int], other: frozenset[int]) -> float:
    """Return the exact overlap of two sets, 0 to 1; two empty sets have none."""
    union = len(one | other)
    return len(one & other) / union if union else 0.0


def signature(hashes: frozenset[int]) -> list[int]:
    """Return the 128 minima of a shingle set, empty for an empty set.

    Of more than 3,000 shingles the 3,000 smallest are used (Broder's sketch): a fixed cost a file, at the price of an
    estimate that is a little low for two long texts of different length.
    """
    if not hashes:
        return []
    kept = heapq.nsmallest(_MAX_SHINGLES, hashes) if len(hashes) > _MAX_SHINGLES else hashes
    return [min([(a * value + b) % _PRIME for value in kept]) & _MASK for a, b in _FUNCTIONS]


def estimate(one: Sequence[int], other: Sequence[int]) -> float:
    """Return the estimated overlap of two signatures; its standard error is at most 0.045."""
    if not one or len(one) != len(other):
        return 0.0
    return sum(a == b for a, b in zip(one, other, strict=True)) / len(one)


def similar_pairs(signatures: Mapping[str, Sequence[int]], *, least: float = 0.6) -> list[tuple[str, str, float]]:
    """Return pairs whose estimated overlap is at least ``least``, most alike first.

    With 32 bands of 4 rows a pair at 0.6 is found with probability 0.99, at 0.8 practically always. A bucket of more
    than 60 signatures is compared with its neighbours only, so that a thousand copies of a template cost no million
    comparisons.
    """
    found: dict[tuple[str, str], float] = {}
    for one, other in _candidates(signatures):
        if (one, other) not in found:
            found[one, other] = estimate(signatures[one], signatures[other])
    pairs = [(one, other, value) for (one, other), value in found.items() if value >= least]
    return sorted(pairs, key=lambda pair: (-pair[2], pair[0], pair[1]))


def _candidates(signatures: Mapping[str, Sequence[int]]) -> Iterator[tuple[str, str]]:
    for band in range(BANDS):
        buckets: dict[tuple[int, ...], list[str]] = defaultdict(list)
        for name in sorted(signatures):
            rows = tuple(signatures[name][band * _ROWS : (band + 1) * _ROWS])
            if rows:
                buckets[rows].append(name)
        for names in buckets.values():
            for index, one in enumerate(names):
                for other in names[index + 1 : index + 1 + _MAX_BUCKET]:
                    yield one, other


def _limit(matches: Iterable[re.Match[str]], count: int) -> Iterator[re.Match[str]]:
    for _, match in zip(range(count), matches, strict=False):
        yield match


def _hash64(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def _functions() -> tuple[tuple[int, int], ...]:
    # Fixed: signatures made by different processes, machines and days must be comparable.
    return tuple(
        (_hash64(f"callboard minhash a {index}") % (_PRIME - 1) + 1, _hash64(f"callboard minhash b {index}") % _PRIME)
        for index in range(PERMUTATIONS)
    )


_FUNCTIONS: Final = _functions()
