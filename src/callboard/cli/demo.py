"""``callboard demo``."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from callboard.cli.course import DATA, INTERRUPTED, OUT, Course, Folder, how_called, run
from callboard.cli.output import emit, note
from callboard.cli.session import Session, example, global_options, json_option, pass_session

if TYPE_CHECKING:
    from rich.progress import ProgressColumn

    from callboard.agents.digest.run import Demo, Progress

TAKEOVER = "takeover"
# Columns that stage and numbers take beside the bar, with 99,999 files.
NUMBERS_WIDTH = 60


class _Demos(click.Command):
    """The demonstration, and by the name of ``takeover`` in the folder's place another one."""

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,  # noqa: ANN401 - click's
    ) -> click.Context:
        """Return the context of whichever was meant; a folder of that name is written ``./takeover``."""
        if args[:1] != [TAKEOVER]:
            return super().make_context(info_name, args, parent, **extra)
        from callboard.cli.takeover import command as takeover

        return takeover.make_context(f"{info_name} {TAKEOVER}", args[1:], parent, **extra)


@click.command(
    "demo",
    cls=_Demos,
    epilog=example("callboard demo", "callboard demo ~/notes --out /tmp/report", "callboard demo takeover --help"),
)
@click.argument("folder", type=Folder(path_type=Path, exists=True, file_okay=False), default=Path())
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), default=OUT, help=f"Report folder.  [default: {OUT}]"
)
@click.option(
    "--data", type=click.Path(path_type=Path, file_okay=False), default=DATA, help=f"Data folder.  [default: {DATA}]"
)
@click.option("--processes", type=click.IntRange(1, 64), default=3, help="Worker processes.  [default: 3]")
@click.option("--concurrency", type=click.IntRange(1, 64), default=2, help="Slots of each.  [default: 2]")
@click.option("--max-files", type=click.IntRange(1, 100_000), default=5000, help="Files at most.  [default: 5000]")
@click.option("--kill/--no-kill", default=True, help="Kill one worker in the middle, on purpose.  [default: kill]")
@json_option
@global_options
@pass_session
def command(
    session: Session,
    /,
    *,
    folder: Path,
    out: Path,
    data: Path,
    processes: int,
    concurrency: int,
    max_files: int,
    kill: bool,
) -> None:
    """Digest a folder of text and source files on three worker processes, and write a report.

    A planner agent says what its summary shall be about, and a writer agent writes it: with your model where one is
    configured (agents.model), else with the extractive one, which needs no key and quotes what the files say.

    Starts a NATS server of its own, submits one task a file, kills one worker in the middle, and shows in the report
    that no file was lost and none counted twice. Files are only read. Ctrl-C is clean at any time.

    `callboard demo takeover` is another one: a long turn of an actor whose worker is killed.
    """
    if session.nats is not None:
        message = "the demo starts a server of its own, so --nats does not go with it"
        raise click.UsageError(message)
    course = Course()
    try:
        demo = _digest(
            session,
            course,
            folder=folder,
            out=out,
            data_dir=data,
            processes=processes,
            concurrency=concurrency,
            max_files=max_files,
            kill=kill,
        )
    except KeyboardInterrupt:
        report = "the report is written" if course.stage == "written" else "there is no new report"
        note(f"Stopped by {course.stopped_by}: workers and server are down, {report}.")
        sys.exit(INTERRUPTED)
    if session.json:
        emit(_summary(demo))
    else:
        _say(demo=demo, data=data, is_kill_wanted=kill)
    book = demo.ledger
    if not book.is_whole or not book.statuses.get("completed", 0) > 1:
        sys.exit(1)


def _digest(session: Session, course: Course, /, **options: Any) -> Demo:  # noqa: ANN401 - by name
    from callboard.agents.digest.run import DemoOptions, run_demo

    with _progress(session) as show:

        def tell(progress: Progress) -> None:
            course.stage = progress.stage
            show(progress)

        return run(course, run_demo(DemoOptions(**options), tell))


def _summary(demo: Demo) -> dict[str, object]:
    book = demo.ledger
    return {
        "event": "finished",
        "html": str(demo.written.html),
        "json": str(demo.written.json),
        "submitted": book.submitted,
        "recorded": book.recorded,
        "failed": len(book.failed),
        "lost": len(book.lost),
        "doubled": len(book.doubled),
        "killed": book.kill.worker if book.kill else None,
        "taken_over": len(book.taken_over),
        "summary_by": demo.summary.model,
        "summary_note": demo.summary.note,
        "seconds": round(demo.seconds, 3),
    }


@contextmanager
def _progress(session: Session) -> Iterator[Callable[[Progress], None]]:
    from rich.console import Console

    console = Console(stderr=True)
    # a dumb terminal cannot redraw a line
    if session.json or not console.is_terminal or console.is_dumb_terminal:
        yield _plain(session)
        return
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bar

    bar_width = min(max(console.width - NUMBERS_WIDTH, 8), 30)
    columns = (TextColumn("{task.description:9}"), BarColumn(bar_width=bar_width), _numbers_column())
    with Bar(*columns, console=console) as bar:
        line = bar.add_task("listing", total=None)

        def tell(progress: Progress) -> None:
            if progress.text:
                bar.console.print(f"  {progress.text}", highlight=False, markup=False, soft_wrap=True)
            if progress.stage in ("listing", "starting"):
                bar.update(line, description=progress.stage)
                return
            if bar.tasks[0].total != progress.total:
                bar.reset(line, total=progress.total)  # the clock of rate and ETA begins with the first file
            stage = "digesting" if progress.stage == "killed" else progress.stage
            bar.update(line, description=stage, completed=progress.done)

        yield tell


def _numbers_column() -> ProgressColumn:
    """Return the column with count, rate and time left; it changes twice a second, so that it can be read."""
    from rich.progress import ProgressColumn, Task
    from rich.table import Column
    from rich.text import Text

    class Numbers(ProgressColumn):
        max_refresh = 0.5

        def render(self, task: Task) -> Text:
            if task.total is None:
                return Text("")
            total = f"{task.total:,.0f}"
            parts = [f"{task.completed:>{len(total)},.0f}/{total} files"]
            if task.speed and task.description == "digesting":
                parts.append(f"{task.speed:,.0f} files/s")
            if task.time_remaining and task.description == "digesting":
                minutes, seconds = divmod(round(task.time_remaining), 60)
                parts.append(f"{minutes}:{seconds:02} left")
            return Text("  ".join(parts), style="progress.remaining")

    return Numbers(table_column=Column(no_wrap=True))


def _plain(session: Session) -> Callable[[Progress], None]:
    last = {"stage": "", "quarter": -1}

    def tell(progress: Progress) -> None:
        quarter = progress.done * 4 // progress.total if progress.total else 0
        if progress.stage == "written":
            return  # the closing lines say so
        if progress.stage == last["stage"] and quarter == last["quarter"] and not progress.text:
            return
        last.update(stage=progress.stage, quarter=quarter)
        if session.json:
            emit({"event": progress.stage, "done": progress.done, "total": progress.total, "text": progress.text})
        else:
            count = f" {progress.done:,}/{progress.total:,}" if progress.total else ""
            note(f"{progress.stage}{count} {progress.text}".rstrip())

    return tell


def _say(*, demo: Demo, data: Path, is_kill_wanted: bool) -> None:
    from callboard.agents.digest.report import NO_KILL

    book = demo.ledger
    whole = "nothing lost, nothing counted twice" if book.is_whole else "SOMETHING IS WRONG, see the report"
    click.echo(
        f"{book.submitted:,} tasks submitted, {book.recorded:,} recorded, {len(book.lost):,} lost, "
        f"{len(book.doubled):,} counted twice: {whole} ({demo.seconds:.1f} s)."
    )
    for entry in book.failed[:10]:
        click.echo(f"{entry.status.capitalize()}: {entry.label}: {entry.error}")
    if book.kill is not None:
        taken = len(book.taken_over)
        what = "no task had to be" if not taken else f"{taken} of its tasks {'was' if taken == 1 else 'were'}"
        click.echo(f"One worker ({book.kill.worker}) was killed on purpose; {what} taken over.")
    elif is_kill_wanted:
        click.echo(NO_KILL)
    click.echo(_about_summary(demo))
    click.echo(f"Report:  {demo.written.html.resolve().as_uri()}")
    click.echo(f"         {demo.written.json}")
    called, folder = how_called(), shlex.quote(str(data))
    click.echo("Look at the audit trail of this run, in two terminals of this folder:")
    click.echo(f"  {called} up --data {folder} --port 0")
    click.echo(f"  CALLBOARD_SERVER__DATA_DIR={folder} {called} audit tail --limit 20")


def _about_summary(demo: Demo) -> str:
    """Return who wrote the summary, or why there is none."""
    found = demo.summary
    if not found.paragraphs:
        return f"The report has no summary: {found.note}"
    note = f": {found.note}" if found.note else ""
    return f"A planner and a writer agent made the summary with the model {found.model}{note}"
