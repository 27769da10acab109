"""``callboard demo``."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from callboard.cli.output import emit, note
from callboard.cli.session import Session, example, global_options, json_option, pass_session

if TYPE_CHECKING:
    from callboard.agents.digest.run import Demo, DemoOptions, Progress

DATA = Path(".callboard/demo")
OUT = Path("callboard-report")


@click.command("demo", epilog=example("callboard demo", "callboard demo ~/notes --out /tmp/report"))
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False), default=Path())
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

    Starts a NATS server of its own, submits one task a file, kills one worker in the middle, and shows in the report
    that no file was lost and none counted twice. Files are only read. Ctrl-C is clean at any time.
    """
    from callboard.agents.digest.run import DemoOptions

    options = DemoOptions(
        folder=folder,
        out=out,
        data_dir=data,
        processes=processes,
        concurrency=concurrency,
        kill=kill,
        max_files=max_files,
    )
    from callboard.runtime import logs

    # the worker that dies on purpose is no news; what goes wrong is
    logs.configure(level="error", form="console")
    # without workers or server left behind: the first Ctrl-C cancels, everything is taken down in order
    demo = asyncio.run(_run(session, options))
    book = demo.ledger
    if session.json:
        emit(
            {
                "event": "finished",
                "html": str(demo.written.html),
                "json": str(demo.written.json),
                "submitted": book.submitted,
                "recorded": book.recorded,
                "lost": len(book.lost),
                "doubled": len(book.doubled),
                "taken_over": len(book.taken_over),
                "seconds": round(demo.seconds, 3),
            }
        )
    else:
        _say(options, demo)
    if not book.is_whole:
        sys.exit(1)


async def _run(session: Session, /, options: DemoOptions) -> Demo:
    from callboard.agents.digest.run import run_demo

    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    if task is not None:
        loop.add_signal_handler(signal.SIGTERM, task.cancel)
    with _progress(session) as tell:
        try:
            return await run_demo(options, tell)
        except asyncio.CancelledError:
            raise KeyboardInterrupt from None


@contextmanager
def _progress(session: Session) -> Iterator[Callable[[Progress], None]]:
    if session.json or not sys.stderr.isatty():
        yield _plain(session)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description:10}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=Console(stderr=True)) as bar:
        line = bar.add_task("starting", total=None, rate="")

        def tell(progress: Progress) -> None:
            if progress.stage in ("starting", "killed") and progress.text:
                bar.console.print(f"  {progress.text}", highlight=False, markup=False)
            speed = bar.tasks[0].speed
            bar.update(
                line,
                description="digesting" if progress.stage == "killed" else progress.stage,
                total=progress.total or None,
                completed=progress.done,
                rate=f"{speed:.0f} files/s" if speed else "",
            )

        yield tell


def _plain(session: Session) -> Callable[[Progress], None]:
    last = {"stage": "", "tenth": -1}

    def tell(progress: Progress) -> None:
        tenth = progress.done * 10 // progress.total if progress.total else 0
        if progress.stage == last["stage"] and tenth == last["tenth"] and not progress.text:
            return
        last.update(stage=progress.stage, tenth=tenth)
        if session.json:
            emit({"event": progress.stage, "done": progress.done, "total": progress.total, "text": progress.text})
        else:
            note(f"{progress.stage} {progress.done}/{progress.total} {progress.text}".rstrip())

    return tell


def _say(options: DemoOptions, demo: Demo) -> None:
    book = demo.ledger
    whole = "nothing lost, nothing counted twice" if book.is_whole else "SOMETHING IS WRONG, see the report"
    click.echo(
        f"{book.submitted} tasks submitted, {book.recorded} recorded, {len(book.lost)} lost, "
        f"{len(book.doubled)} counted twice: {whole} ({demo.seconds:.1f} s)."
    )
    if book.kill is not None:
        click.echo(f"One worker was killed on purpose; {len(book.taken_over)} of its tasks were taken over.")
    click.echo(f"Report:  {demo.written.html.resolve().as_uri()}")
    click.echo(f"         {demo.written.json}")
    click.echo("Look at the audit trail of this run:")
    click.echo(f"  callboard up --data {options.data_dir} --port 0     (in one terminal)")
    click.echo("  callboard audit tail --limit 20        (in another)")
