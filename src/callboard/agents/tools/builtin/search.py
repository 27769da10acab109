"""A tool that searches the text files of one folder and cites file and line."""

from __future__ import annotations

import heapq
import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import Final

from msgspec import Struct

from callboard.agents.errors import ToolArgumentError, ToolError
from callboard.agents.tools.builtin.folder import Folder
from callboard.agents.tools.context import ToolContext
from callboard.agents.tools.decorator import tool

MAX_FILES: Final = 5000
MAX_FILE_BYTES: Final = 1 << 20
MAX_TOTAL_BYTES: Final = 64 << 20
MAX_HITS: Final = 20
MAX_WORDS: Final = 64
PIECE_LINES: Final = 12
_STEP_LINES = 8
_SHOWN_CHARS = 600
# the usual constants of BM25
_K1 = 1.5
_B = 0.75
_WORD = re.compile(r"\w+")


class Piece(Struct, frozen=True):
    """Some lines of a file."""

    path: str
    line: int
    text: str
    words: Counter[str]
    length: int


@tool(category="search", action="read", timeout_s=60)
def search_files(query: str, context: ToolContext, folder: str = "", hits: int = 8) -> str:
    """Search the text files of a folder by words; returns the best places as file:line with their text.

    Args:
        query: Words to look for, 64 at most; those that are rare in the folder count for more.
        folder: Path within the agent's folder; empty for the whole of it.
        hits: How many places, 1 to 20.
    """
    wanted = list(dict.fromkeys(_words(query)))[:MAX_WORDS]
    if not wanted:
        message = "the query holds no word"
        raise ToolArgumentError(message)
    pieces = list(_pieces(Folder(context.need_folder()), folder, frozenset(wanted)))
    best = ranked(pieces, wanted)[: max(1, min(hits, MAX_HITS))]
    return "\n\n".join(_shown(piece, wanted) for piece in best) or "nothing found"


def ranked(pieces: list[Piece], wanted: list[str]) -> list[Piece]:
    """Return the pieces that hold a wanted word, the best first, at most one of each overlapping pair."""
    holding = Counter(word for piece in pieces for word in wanted if piece.words[word])
    average = sum(piece.length for piece in pieces) / len(pieces) if pieces else 1.0
    count = len(pieces)
    weights = {word: math.log(1 + (count - n + 0.5) / (n + 0.5)) for word, n in holding.items()}
    scored = [(-_score(piece, weights, average), piece.path, piece.line, piece) for piece in pieces]
    found: list[Piece] = []
    for score, path, line, piece in heapq.nsmallest(MAX_HITS * 4, scored, key=lambda item: item[:3]):
        is_near = any(other.path == path and abs(other.line - line) < PIECE_LINES for other in found)
        if score < 0 and not is_near:
            found.append(piece)
    return found


SEARCH: Final = (search_files,)


def _score(piece: Piece, weights: dict[str, float], average: float) -> float:
    share = _K1 * (1 - _B + _B * piece.length / (average or 1.0))
    return sum(weight * n * (_K1 + 1) / (n + share) for word, weight in weights.items() if (n := piece.words[word]))


def _pieces(folder: Folder, path: str, wanted: frozenset[str]) -> Iterator[Piece]:
    left = MAX_TOTAL_BYTES
    for entry in folder.walk(path, max_entries=MAX_FILES):
        if entry.kind != "file" or not 0 < entry.size_bytes <= MAX_FILE_BYTES or left <= 0:
            continue
        try:
            data, _ = folder.read(entry.path, max_bytes=MAX_FILE_BYTES)
        except ToolError:
            # gone since, or not ours to read
            continue
        left -= len(data)
        if b"\0" not in data:
            yield from _cut(entry.path, data.decode("utf-8", "replace").splitlines(), wanted)


def _cut(path: str, lines: list[str], wanted: frozenset[str]) -> Iterator[Piece]:
    for start in range(0, max(1, len(lines) - (PIECE_LINES - _STEP_LINES)), _STEP_LINES):
        text = "\n".join(lines[start : start + PIECE_LINES])
        words = _words(f"{path} {text}" if start == 0 else text)
        yield Piece(path, start + 1, text, Counter(word for word in words if word in wanted), len(words))


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def _shown(piece: Piece, wanted: list[str]) -> str:
    lines = piece.text.splitlines()
    first = next((n for n, line in enumerate(lines) if any(word in _words(line) for word in wanted)), 0)
    text = "\n".join(lines[first : first + 6])[:_SHOWN_CHARS]
    return f"{piece.path}:{piece.line + first}\n{text}"
