"""``callboard watch``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from callboard.cli.output import emit, ended, note, shorten, tell
from callboard.cli.session import Session, example, global_options, json_option, pass_session

if TYPE_CHECKING:
    from callboard.agents.llm.tokens import Chunk
    from callboard.agents.run_view import RunView


@click.command("watch", epilog=example("callboard watch digest/2026-11-21", "callboard watch digest/7f3a --json"))
@click.argument("run")
@click.option("--after", "after_seq", type=click.IntRange(0), default=0, help="Go on behind this chunk (`seq`).")
@json_option
@global_options
@pass_session
def command(session: Session, /, run: str, *, after_seq: int) -> None:
    """Watch a run until it ends: its agents as they begin and end, and the words of their models as they are made.

    A lost connection leaves no gap. Words that were made before are kept for ten minutes. The exit status is 1 when
    the run fails or is cancelled.
    """
    session.run(_watch(session, run, after_seq))


async def _watch(session: Session, /, run: str, after_seq: int) -> None:
    import contextlib

    from callboard.agents.run_view import RunView
    from callboard.agents.watching import watch

    screen = Screen()
    last: RunView | None = None
    async with session.bus("watch") as bus, contextlib.aclosing(watch(bus, run, after_seq=after_seq)) as news:
        async for each in news:
            last = each if isinstance(each, RunView) else last
            if session.json:
                emit({"event": "run" if isinstance(each, RunView) else "tokens", "value": each})
            elif isinstance(each, RunView):
                screen.run(each)
            else:
                screen.chunk(each)
    screen.close()
    if last is not None and last.status in ("failed", "cancelled"):
        click.get_current_context().exit(1)


class Screen:
    """Prints news of a run for people: a line for what begins and ends, and the words of one model after the other."""

    def __init__(self) -> None:
        """Begin with nothing seen."""
        self._known: dict[tuple[str, int, int], str] = {}
        self._status = ""
        self._speaker: tuple[str, int] | None = None
        self._numbers: dict[tuple[str, int], int] = {}

    def run(self, view: RunView) -> None:
        """Say what has changed since the last view."""
        for part in view.agents:
            key = (part.name, part.attempt, part.try_)
            if self._known.get(key) != part.status:
                self._known[key] = part.status
                who = part.agent or f"pool {part.capability}"
                self._line(f"{part.name} {part.status}  {who}  {shorten(part.error, 80)}".rstrip())
        if view.status != self._status:
            self._status = view.status
            self._line(f"{view.run} {ended(view.status, shorten(view.error, 100), between='  ')}")

    def chunk(self, chunk: Chunk) -> None:
        """Print what follows; a call that another host has begun again is said so, and printed from its beginning."""
        speaker = (chunk.step, chunk.attempt)
        if chunk.number < self._numbers.get(speaker, 0):
            return
        self._numbers[speaker] = chunk.number + 1
        if speaker != self._speaker:
            if not chunk.text and (chunk.end is None or not chunk.end.error):
                # an answer without words, such as one that calls tools
                return
            self.close()
            again = f" (again, {chunk.attempt})" if chunk.attempt > 1 else ""
            tell(f"[{chunk.agent or 'model'}{again}] ", end="")
            self._speaker = speaker
        tell(chunk.text, end="")
        if chunk.end is not None:
            if chunk.end.error:
                note(f" ({chunk.end.error})")
            self.close()

    def close(self) -> None:
        """End the line that is open."""
        if self._speaker is not None:
            click.echo()
            self._speaker = None

    def _line(self, text: str) -> None:
        self.close()
        tell(text)
