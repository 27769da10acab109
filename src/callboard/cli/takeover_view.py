"""The live view of ``callboard demo takeover``: a strip of steps on a terminal, lines elsewhere, JSON for programs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from callboard.cli.output import emit, note
from callboard.cli.session import Session

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

    from callboard.agents.dossier.scene import News, Scene

Show = Callable[["Scene", "News | None"], None]

REFRESHES_A_SECOND = 10
MINUTE_S = 60
# one for each letter, in turn; the letters themselves tell the same without colour
STYLES = ("cyan", "magenta", "yellow", "green", "blue")


@contextmanager
def shown(session: Session) -> Iterator[Show]:
    """Show what happens, in whatever way suits where the output goes."""
    from rich.console import Console

    console = Console(stderr=True)
    # a dumb terminal cannot redraw a line
    if session.json or not console.is_terminal or console.is_dumb_terminal:
        yield _json if session.json else _plain
        return
    from rich.live import Live
    from rich.text import Text

    present: list[Scene] = []

    def picture() -> RenderableType:
        return render(present[0]) if present else Text("")

    with Live(get_renderable=picture, console=console, refresh_per_second=REFRESHES_A_SECOND) as live:

        def show(scene: Scene, news: News | None) -> None:
            present[:] = [scene]
            # the strip says what the lines would
            if news is not None and news.event != "step":
                live.console.print(f"  {news.text}", highlight=False, markup=False, style=_style_of(news.event))

        yield show


def _style_of(event: str) -> str:
    return {"killed": "bold red", "taken_over": "bold green"}.get(event, "")


def _json(scene: Scene, news: News | None) -> None:
    if news is not None:
        emit({"event": news.event, "done": len(scene.by), "total": scene.total, "text": news.text, **news.facts})


def _plain(scene: Scene, news: News | None) -> None:  # noqa: ARG001 - lines tell the news alone
    if news is not None:
        note(news.text)


def render(scene: Scene, *, now_s: float | None = None) -> Text:
    """Return the picture: a cell for each step, and below it who runs what, under which epoch, and for how long yet.

    Args:
        scene: What to show.
        now_s: The machine's monotonic clock; None reads it.
    """
    from rich.text import Text

    from callboard.runtime.clock import SYSTEM_CLOCK

    now_s = SYSTEM_CLOCK.monotonic() if now_s is None else now_s
    done = len(scene.by)
    text = Text("  ")
    for number in range(1, scene.total + 1):
        text.append(*_cell(scene, number))
        # groups of five can be counted, and a narrow terminal breaks between them
        if number % 5 == 0:
            text.append(" ")
    text.append(f"\n  {done}/{scene.total} steps", style="bold")
    if scene.killed_at_s is not None:
        text.append(f"  {scene.runner} is dead for {now_s - scene.killed_at_s:.1f} s", style="bold red")
    elif scene.step:
        text.append(f"  {scene.runner} runs step {scene.step}", style=_style(scene.runner))
    if scene.owner:
        text.append(f"  owner {scene.owner}, epoch {scene.epoch}")
    if scene.waiting:
        text.append(f"  {scene.waiting} mails wait")
    left_s = (scene.total - done) * scene.pace_s
    if scene.step and left_s:
        text.append(f"  {int(left_s // MINUTE_S)}:{int(left_s % MINUTE_S):02} left", style="dim")
    return text


def _cell(scene: Scene, number: int) -> tuple[str, str]:
    if number in scene.by:
        return scene.by[number], _style(scene.by[number])
    if number == scene.step and scene.killed_at_s is not None:
        return "x", "bold red"
    if number == scene.step:
        return scene.runner.lower(), f"reverse {_style(scene.runner)}"
    return ".", "dim"


def _style(letter: str) -> str:
    return STYLES[(ord(letter[0]) - ord("A")) % len(STYLES)] if letter else ""
