"""``callboard new``."""

from __future__ import annotations

import importlib.util
import shlex
from pathlib import Path

import click

from callboard.cli.output import emit
from callboard.cli.session import Session, example, json_option, pass_session


@click.group("new")
def command() -> None:
    """Write the first files of something new."""


@command.command("agent", epilog=example("callboard new agent estimator", "callboard new agent estimator --dir agents"))
@click.argument("name")
@click.option(
    "--dir", "folder", type=click.Path(path_type=Path, file_okay=False), default=Path(), help="Where.  [default: here]"
)
@json_option
@pass_session
def agent(session: Session, /, name: str, *, folder: Path) -> None:
    """Write an agent of some twenty lines, NAME.py, and a test of it that needs no key. What exists is left as it is.

    The agent uses the model of the settings (agents.model, or CALLBOARD_AGENTS__MODEL=openai/...), and without one the
    extractive model, which needs no key and only repeats what it is given.
    """
    from callboard.agents import scaffold

    made = scaffold.write(name, folder)
    written = [path for path in (made.agent, made.test) if path not in made.kept]
    if session.json:
        emit({"written": [str(path) for path in written], "kept": [str(path) for path in made.kept]})
        return
    for path in written:
        click.echo(f"wrote {path}")
    for path in made.kept:
        click.echo(f"left {path} as it is")
    task = shlex.quote('{"text": "A wall of 3 by 4 metres"}')
    click.echo("\nNext:" + (f"\n  cd {shlex.quote(str(folder))}" if folder != Path() else ""))
    steps = [
        (f"python -m pytest {made.test.name}", "it needs no key"),
        (f"callboard dev {made.agent.name}", "in one terminal"),
        (f"callboard ask {name}/ann Task {task}", "in another"),
    ]
    if importlib.util.find_spec("pytest") is None:
        steps.insert(0, ("pip install pytest", "once, for the test"))
    width = max(len(line) for line, _ in steps)
    for line, why in steps:
        click.echo(f"  {line:<{width}}   {why}")
    click.echo("\nIt thinks with your model once one is configured, for example:")
    click.echo("  export OPENAI_API_KEY=...  CALLBOARD_AGENTS__MODEL=openai/gpt-4o-mini")
