"""``callboard demo takeover``."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from callboard.cli.course import DATA, INTERRUPTED, OUT, Course, Folder, how_called, run
from callboard.cli.output import emit, note, table
from callboard.cli.session import Session, example, global_options, json_option, pass_session
from callboard.cli.takeover_view import shown

if TYPE_CHECKING:
    from callboard.agents.dossier.judge import Verdict
    from callboard.agents.dossier.run import Shown
    from callboard.agents.dossier.scene import News, Scene

FOLDER = OUT / "takeover"
QUICK_S = 45.0


@click.command(
    "takeover",
    epilog=example("callboard demo takeover", "callboard demo takeover ~/notes --minutes 10", "make demo-takeover"),
)
@click.argument("folder", type=Folder(path_type=Path, exists=True, file_okay=False), default=Path())
@click.option(
    "--minutes",
    type=click.FloatRange(0, 24 * 60, min_open=True),
    help="How long the turn takes without the kill; each step takes its share at least.  [default: 0.75]",
)
@click.option("--steps", type=click.IntRange(3, 500), default=30, help="Steps of the turn.  [default: 30]")
@click.option("--kills", type=click.IntRange(0, 5), default=1, help="How often to kill its worker.  [default: 1]")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=FOLDER,
    help=f"Report folder.  [default: {FOLDER}]",
)
@click.option(
    "--data", type=click.Path(path_type=Path, file_okay=False), default=DATA, help=f"Data folder.  [default: {DATA}]"
)
@click.option("--max-files", type=click.IntRange(1, 100_000), default=5000, help="Files at most.  [default: 5000]")
@json_option
@global_options
@pass_session
def command(
    session: Session,
    /,
    *,
    folder: Path,
    minutes: float | None,
    steps: int,
    kills: int,
    out: Path,
    data: Path,
    max_files: int,
) -> None:
    """Begin a long turn, kill -9 its worker in the middle, and watch another one finish it.

    Starts a NATS server of its own and two workers. An actor reads the folder (it is only read) and writes a report, in
    one turn of many steps. The account at the end is counted from notes that the steps themselves write to a file:
    which worker ran what, how soon the next one went on, and that no recorded step was repeated. The status is 1 if a
    promise was broken. Ctrl-C is clean at any time.
    """
    from callboard.agents.dossier.run import Options, run_takeover

    if session.nats is not None:
        message = "the demo starts a server of its own, so --nats does not go with it"
        raise click.UsageError(message)
    turn_s = QUICK_S if minutes is None else minutes * 60
    options = Options(
        folder=folder, out=out, data_dir=data, turn_s=turn_s, steps=steps, kills=kills, max_files=max_files
    )
    course = Course()
    try:
        with shown(session) as show:

            def tell(scene: Scene, news: News | None) -> None:
                course.stage = news.event if news is not None else course.stage
                show(scene, news)

            made = run(course, run_takeover(options, tell))
    except KeyboardInterrupt:
        note(f"Stopped by {course.stopped_by}: workers and server are down, the account was not made.")
        sys.exit(INTERRUPTED)
    if session.json:
        emit(_summary(made))
    else:
        _say(made, turn_s=turn_s, data=data)
    if made.verdict.problems:
        sys.exit(1)


def _summary(made: Shown) -> dict[str, object]:
    verdict = made.verdict
    return {
        "event": "finished",
        "steps": verdict.steps,
        "steps_by_worker": {made.workers[pid][1]: count for pid, count in verdict.ran.items()},
        "kills": len(verdict.takeovers),
        "takeover_s": [None if t.after_s is None else round(t.after_s, 3) for t in verdict.takeovers],
        "replayed": verdict.replayed,
        "run_again": verdict.again,
        "repeated": verdict.repeated,
        "doubled": verdict.doubled,
        "missing": verdict.missing,
        "mail_order": verdict.order,
        "answers": made.answers,
        "problems": verdict.problems,
        "actor": made.actor,
        "report": str(made.report),
        "notes": str(made.notes),
        "seconds": round(made.seconds, 3),
    }


def _say(made: Shown, *, turn_s: float, data: Path) -> None:
    verdict = made.verdict
    letters = {pid: letter for pid, (letter, _) in made.workers.items()}
    ran = sorted((letters[pid], count) for pid, count in verdict.ran.items())
    order = ", ".join("the turn" if name == "turn" else f"question {name}" for name in verdict.order)
    rows = [
        ("steps", ", ".join(f"{count} by {letter}" for letter, count in ran)),
        *_takeover_rows(verdict, letters),
        ("recorded steps repeated", _listed(verdict.repeated)),
        ("effects had twice", f"{_listed(verdict.doubled)} of {verdict.steps}"),
        ("mail handled", f"{order}: {'in order' if verdict.is_in_order else 'OUT OF ORDER'}"),
    ]
    table(rows, head=("COUNTED FROM THE STEPS' OWN NOTES", ""), empty="")
    for problem in verdict.problems:
        click.echo(f"BROKEN: {problem}")
    if not verdict.problems:
        click.echo(f"Every promise was kept ({made.seconds:.1f} s).")
    click.echo(f"Report:  {made.report.resolve().as_uri()}")
    click.echo(f"Notes:   {made.notes}")
    click.echo(
        f"The reading is real work; beyond it a step waits until it has taken {turn_s / verdict.steps:.1f} s. The wait "
        "stands for a model that thinks, and --minutes sets it."
    )
    called, folder = how_called(), shlex.quote(str(data))
    click.echo("Look at what the actor remembers, in two terminals of this folder:")
    click.echo(f"  {called} up --data {folder} --port 0")
    click.echo(f"  CALLBOARD_SERVER__DATA_DIR={folder} {called} agents state {shlex.quote(made.actor)}")


def _takeover_rows(verdict: Verdict, letters: dict[int, str]) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for takeover in verdict.takeovers:
        kill = takeover.kill
        rows.append(("killed with SIGKILL", f"{letters[kill.pid]}, in the middle of step {kill.step}"))
        if takeover.after_s is None:
            rows.append(("taken over", "by nobody"))
        else:
            text = f"by {letters[takeover.pid]} after {takeover.after_s:.2f} s, epoch {takeover.epoch}"
            rows.append(("taken over", text))
    if verdict.takeovers:
        rows.append(("taken from the journal", f"{verdict.replayed} steps, not run again"))
        rows.append(("cut off and run again", _listed(verdict.again)))
    return rows


def _listed(numbers: list[int]) -> str:
    return f"{len(numbers)}: step {', '.join(map(str, numbers))}" if numbers else "0"
