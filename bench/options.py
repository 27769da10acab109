"""What a run of the benches was asked for."""

from __future__ import annotations

from pathlib import Path

from msgspec import Struct

from bench.broker import MODES, Mode

ROWS = "abcdefghijklmnopqrtu"


class Options(Struct, kw_only=True, frozen=True):
    """Settings of a run.

    Attributes:
        rows: Letters.
        seconds: Aimed length of one side of one round.
        rounds: Of each side, one after the other: A B A B A B.
        is_quick: Only show that it works: one short round, one mode.
        out: Folder for JSON and profiles.
        folder: Where the servers keep their data, None for the system's temporary folder.
    """

    rows: str = ROWS
    seconds: float = 3.0
    rounds: int = 3
    is_quick: bool = False
    loop: str = "uvloop"
    out: Path = Path(__file__).parent / "out"
    folder: Path | None = None
    modes: tuple[Mode, ...] = MODES
