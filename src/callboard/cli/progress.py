"""How far a copy of streams is, for the person at the terminal."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Self

import click

from callboard.cli.output import size

_EVERY_BYTES = 4 << 20


class Counter:
    """Shows the bytes of one stream after the other on one line of a terminal's standard error."""

    def __init__(self, word: str, *, is_quiet: bool) -> None:
        """``word`` says what was done with the bytes."""
        self._word = word
        self._is_shown = not is_quiet and sys.stderr.isatty()
        self._stream = ""
        self._shown = 0

    def __enter__(self) -> Self:
        """Show nothing yet."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Take the line away."""
        self._show("")

    def count(self, stream: str, done: int) -> None:
        """Note that so many bytes of ``stream`` are done."""
        if stream != self._stream or done - self._shown >= _EVERY_BYTES:
            self._stream, self._shown = stream, done
            self._show(f"{stream}: {size(done)} {self._word}")

    def _show(self, text: str) -> None:
        if self._is_shown:
            click.echo(f"\r\033[K{text}", nl=False, err=True)
