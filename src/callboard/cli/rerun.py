"""``callboard replay RUN --diff``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from callboard.cli.output import SPAN, emit, note, tell
from callboard.cli.session import Session, example, global_options, json_option, pass_session

if TYPE_CHECKING:
    from collections.abc import Sequence

    from callboard.agents.rerun import Actors, Reruns
    from callboard.runtime.actor.parting import Difference
    from callboard.runtime.actor.rerun import Rerun

DIFFERS = 1
_LINES, _WIDTH = 60, 160


class Replays(click.Group):
    """A group that takes ``type/key`` in the place of a command: what shall run again."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command, or ``run`` for a name with a slash."""
        return super().get_command(ctx, "run" if "/" in cmd_name else cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; what has a slash is an argument of ``run``."""
        if args and "/" in args[0]:
            return super().resolve_command(ctx, ["run", *args])
        return super().resolve_command(ctx, args)


@click.command(
    "run",
    epilog=example(
        "callboard replay digest/7f --diff --module flows.py",
        "callboard replay digest/7f --diff --deep --module flows.py --json",
        "callboard replay summariser/ann --mail 4711 --diff --module agents/",
    ),
)
@click.argument("run")
@click.option("--diff", is_flag=True, help="Compare with what is recorded; nothing goes out.")
@click.option("--mail", "seq", type=click.IntRange(1), help="The turn of this mail.  [default: the last turn]")
@click.option("--deep", is_flag=True, help="The turns of agents and runs below it too.")
@click.option(
    "--module",
    "modules",
    multiple=True,
    metavar="MODULE",
    help="Today's code: a file, a folder, a module.  [default: installed agents]",
)
@click.option("--timeout", "timeout_s", type=SPAN, default="60s", show_default=True, help="Longest time of each turn.")
@json_option
@global_options
@pass_session
def command(
    session: Session,
    /,
    run: str,
    *,
    diff: bool,
    seq: int | None,
    deep: bool,
    modules: tuple[str, ...],
    timeout_s: float,
) -> None:
    """Run RUN again on today's code with what is recorded of it, and show the first step that differs.

    RUN is a run of a flow (digest/7f) or an actor (type/key). Models, tools, questions and all other steps return what
    they returned then; one without a record is not executed: it is the difference. `callboard replay run RUN --diff` is
    the same.
    """
    if not diff:
        message = "say what shall be done: --diff compares with what is recorded"
        raise click.UsageError(message)
    found = session.run(_rerun(session, run, seq, deep=deep, modules=modules, timeout_s=timeout_s))
    if session.json:
        emit({"equal": found.is_equal, "turns": [_line(each) for each in found.turns], "left_out": found.left_out})
    else:
        _tell(found)
    if not found.is_equal:
        click.get_current_context().exit(DIFFERS)


async def _rerun(
    session: Session, /, run: str, seq: int | None, *, deep: bool, modules: Sequence[str], timeout_s: float
) -> Reruns:
    from callboard.agents.rerun import rerun_all

    actors = _actors(modules)
    async with session.bus("replay") as bus:
        return await rerun_all(bus, actors, run, seq=seq, deep=deep, timeout_s=timeout_s)


def _actors(modules: Sequence[str]) -> Actors:
    from callboard.runtime.actor.definition import with_companions
    from callboard.runtime.errors import ModuleLoadError
    from callboard.runtime.loader import INSTALLED, load_parts

    try:
        parts = load_parts(modules or (INSTALLED,))
    except ModuleLoadError as error:
        if modules:
            raise
        message = "say where today's code is: --module FILE, a folder or a module"
        if error.__cause__ is not None:
            # an installed package has agents, and cannot be imported
            message += f"; {error}"
        raise ModuleLoadError(message) from error
    for each in parts.skipped:
        note(f"left out {each.name}: {each.error}")
    return {actor.actor_name: actor for actor in with_companions(parts.actors)}


def _line(found: Rerun) -> dict[str, object]:
    import msgspec

    plain = msgspec.to_builtins(found, enc_hook=str)
    return {
        **plain,
        "equal": found.is_equal,
        "differences": [_difference(each) for each in found.differences],
        "stopped": found.stopped or None,
    }


def _difference(found: Difference) -> dict[str, object]:
    from callboard.agents.rerun import lines

    fields = {name: getattr(found, name) for name in found.__struct_fields__}
    return {**fields, "lines": lines(found)}


def _tell(found: Reruns) -> None:
    for each in found.turns:
        told = "no difference" if each.is_equal else _count(len(each.differences), "difference")
        outside = _count(len(each.tried), "outside call") + (" refused" if each.tried else "")
        tell(f"{each.turn}: {told}, {_count(each.steps, 'step')} recalled, {outside}")
        for text in each.uncompared:
            tell(f"  not compared: {text}")
        for place, difference in enumerate(each.differences):
            _tell_difference(difference, is_first=place == 0)
    for below in found.left_out:
        tell(f"{below.turn}: not run again: {below.code}: {below.message}")


def _tell_difference(found: Difference, *, is_first: bool) -> None:
    from callboard.agents.rerun import lines

    tell(f"  {'first: ' if is_first else 'then: '}{found.text}")
    if found.entry:
        was = f", recorded as {found.was}" if found.was else ""
        tell(f"    {found.entry}{was}")
    shown = lines(found)
    for line in shown[:_LINES]:
        tell(f"    {line[:_WIDTH]}")
    if len(shown) > _LINES:
        tell(f"    ... {len(shown) - _LINES} lines more; --json has them")


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
