"""Vectors without a model: words and their parts hashed into a fixed number of places. Offline and deterministic."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from hashlib import blake2b

DIMENSIONS = 256
_WORD = re.compile(r"\w+")
_PART = 3


def embed_texts(texts: Sequence[str], *, dimensions: int = DIMENSIONS) -> list[list[float]]:
    """Return a vector of length 1 for each text; equal texts have equal vectors in every process.

    Texts that share words, or parts of words, lie near each other by the cosine. It knows nothing of meaning: "car" and
    "automobile" are strangers. An empty text gives zeros.

    Args:
        texts: What to embed.
        dimensions: Length of each vector, 8 at least.

    Raises:
        ValueError: If ``dimensions`` is below 8.
    """
    if dimensions < 8:  # noqa: PLR2004 - fewer tell nothing apart
        text = f"a vector takes 8 dimensions at least, {dimensions} were asked for"
        raise ValueError(text)
    return [_embed(text, dimensions) for text in texts]


def _embed(text: str, dimensions: int) -> list[float]:
    found = [0.0] * dimensions
    for feature, weight in _features(text.casefold()):
        number = int.from_bytes(blake2b(feature.encode(errors="replace"), digest_size=8).digest(), "big")
        # one bit for the sign, so that features which share a place do not only add up
        found[(number >> 1) % dimensions] += weight if number & 1 else -weight
    length = math.sqrt(sum(value * value for value in found))
    return [value / length for value in found] if length else found


def _features(text: str) -> Iterator[tuple[str, float]]:
    for word in _WORD.findall(text):
        yield word, 1.0
        padded = f"^{word}$"
        parts = [padded[at : at + _PART] for at in range(len(padded) - _PART + 1)]
        for part in parts:
            yield f"#{part}", 0.5 / math.sqrt(len(parts))
