"""``callboard dead``."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

import click

from callboard.cli.output import SINCE, emit, note, shorten, stamp, table, tell
from callboard.cli.session import Session, example, global_options, json_option, pass_session
from callboard.cli.tasks import say, submitted_lines

if TYPE_CHECKING:
    from callboard.runtime.actor.letter import Buried
    from callboard.runtime.bus.base import Bus
    from callboard.runtime.dead import Letter

_ALL = 100_000
_NONE = "no dead letter of a task"


@click.group("dead")
def command() -> None:
    """List, show, requeue and discard dead letters: tasks that failed for good. Of actors' mail: list."""


@command.command(
    "ls",
    epilog=example(
        "callboard dead ls",
        "callboard dead ls --capability search --cause ValueError",
        "callboard dead ls --agent greeter/ann",
    ),
)
@click.option("--capability", help="Only of this one.")
@click.option("--agent", metavar="TYPE[/KEY]", help="Those of an actor's mail, or of all actors of a type.")
@click.option("--cause", help="Only with this error code or exception class.")
@click.option("--since", type=SINCE, help="Only those written since: a span (2h) or a time.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True)
@json_option
@global_options
@pass_session
def ls(session: Session, /, *, agent: str | None, **options: Any) -> None:  # noqa: ANN401 - click's
    """List dead letters, newest first: of tasks, or with --agent of actors' mail.

    `callboard agents requeue TYPE/KEY [MAIL]` puts those of an actor back into its mailbox.
    """
    from callboard.runtime import dead
    from callboard.runtime.actor import letter

    if agent is not None:
        _ls_agent(session, agent, **options)
        return

    async def work() -> tuple[list[Letter], dict[str, int]]:
        async with session.bus("dead-ls") as bus:
            found = await dead.letters(bus, **options)
            return found, {} if session.json else await letter.counts(bus)

    found, others = session.run(work())
    if others:
        told = ", ".join(f"{kind} {count}" for kind, count in others.items())
        note(f"dead letters of actors, not listed here: {told}; see `callboard dead ls --agent {next(iter(others))}`")
    if session.json:
        emit(found)
        return
    rows = [
        (
            x.letter.task,
            x.letter.capability,
            stamp(x.letter.at),
            str(x.letter.attempts),
            str(x.letter.crashes),
            shorten(f"{_cause(x)}: {x.letter.cause.message}", 70),
        )
        for x in found
    ]
    table(rows, head=("TASK", "CAPABILITY", "AT", "RUNS", "CRASHES", "CAUSE"), empty=_NONE)


def _ls_agent(session: Session, agent: str, *, capability: str | None, **options: Any) -> None:  # noqa: ANN401 - click's
    from callboard.runtime.actor import letter
    from callboard.runtime.bus import header

    if capability is not None:
        message = "--capability is of tasks, --agent of actors: give one of them"
        raise click.UsageError(message)
    kind, slash, key = agent.partition("/")

    async def work() -> list[Buried]:
        async with session.bus("dead-ls") as bus:
            return await letter.letters(bus, kind, key if slash else None, **options)

    found = session.run(work())
    if session.json:
        emit(found)
        return
    rows = [
        (
            x.letter.address,
            str(x.letter.seq),
            x.letter.headers.get(header.TYPE, "-"),
            stamp(x.letter.at),
            str(x.letter.attempts),
            shorten(f"{x.letter.failure.type or x.letter.failure.code}: {x.letter.failure.message}", 70),
        )
        for x in found
    ]
    table(rows, head=("ACTOR", "MAIL", "TYPE", "AT", "RUNS", "CAUSE"), empty=f"no dead letter of {agent}")


def _cause(found: Letter) -> str:
    from msgspec import UNSET

    kind = found.letter.cause.type
    return found.letter.cause.code if kind is UNSET else kind


@command.command("show", epilog=example("callboard dead show search/2026-11-21/7"))
@click.argument("task_id", metavar="TASK")
@json_option
@global_options
@pass_session
def show(session: Session, /, task_id: str) -> None:
    """Show a dead letter: cause, history and payload."""
    from callboard.runtime import dead

    async def work() -> Letter:
        async with session.bus("dead-show") as bus:
            return await dead.find(bus, task_id)

    found = session.run(work())
    if session.json:
        emit(found)
        return
    letter = found.letter
    lines = [("task", letter.task), ("capability", letter.capability), *submitted_lines(letter.submitted)]
    lines += [("failed", stamp(letter.at)), ("runs", str(letter.attempts)), ("crashes", str(letter.crashes))]
    lines += [("worker", letter.worker), ("cause", f"{_cause(found)}: {letter.cause.message}")]
    say(lines, letter.history)
    if isinstance(letter.cause.trace, str):
        tell(f"\n{letter.cause.trace.rstrip()}")
    tell(f"\nrun it again: callboard dead requeue {shlex.quote(letter.task)}")


@command.command(
    "requeue",
    epilog=example(
        "callboard dead requeue search/2026-11-21/7",
        """callboard dead requeue search/2026-11-21/7 --edit '{"text": "y"}'""",
        "callboard dead requeue --capability search --cause ConnectionError",
    ),
)
@click.argument("task_ids", metavar="[TASK]...", nargs=-1)
@click.option("--capability", help="All of this one.")
@click.option("--cause", help="All with this error code or exception class.")
@click.option("--all", "every", is_flag=True, help="All there are.")
@click.option("--edit", "edited", metavar="JSON", help="Submit this payload in place of the old one; one task only.")
@click.option("--keep", is_flag=True, help="Leave the dead letter where it is.")
@json_option
@global_options
@pass_session
def requeue(session: Session, /, *, edited: str | None, keep: bool, **chosen: Any) -> None:  # noqa: ANN401 - click's
    """Submit dead tasks again, each under a new id (TASK+r1, +r2, ...), and remove their letters."""
    from callboard.cli.submit import read_payload
    from callboard.runtime import dead
    from callboard.runtime.client import Client

    _check(**chosen)
    payload = read_payload(edited)
    if payload is not None and len(chosen["task_ids"]) != 1:
        message = "--edit takes exactly one TASK"
        raise click.UsageError(message)

    async def work() -> list[tuple[str, str]]:
        async with session.bus("dead-requeue") as bus:
            client, done = Client(bus), []
            for letter in await _choose(bus, chosen):
                handle = await dead.requeue(bus, client, letter, payload=payload, keep=keep)
                done.append((letter.letter.task, handle.id))
                if not session.json:
                    tell(f"{letter.letter.task} -> {handle.id}")
            return done

    done = session.run(work())
    if session.json:
        emit([{"task": old, "requeued": new} for old, new in done])
    elif not done:
        click.echo("no dead letter fits", err=True)


@command.command("discard", epilog=example("callboard dead discard search/2026-11-21/7"))
@click.argument("task_ids", metavar="[TASK]...", nargs=-1)
@click.option("--capability", help="All of this one.")
@click.option("--cause", help="All with this error code or exception class.")
@click.option("--all", "every", is_flag=True, help="All there are.")
@json_option
@global_options
@pass_session
def discard(session: Session, /, **chosen: Any) -> None:  # noqa: ANN401 - click's
    """Delete dead letters. The records of their tasks stay in the ledger."""
    from callboard.runtime import dead

    _check(**chosen)

    async def work() -> list[str]:
        async with session.bus("dead-discard") as bus:
            return [x.letter.task for x in await _choose(bus, chosen) if await dead.discard(bus, x)]

    done = session.run(work())
    if session.json:
        emit({"discarded": done})
    else:
        tell(f"discarded: {', '.join(done) or 'none'}")


async def _choose(bus: Bus, chosen: dict[str, Any]) -> list[Letter]:
    from callboard.runtime import dead

    capability = chosen["capability"]
    if chosen["task_ids"]:
        return [await dead.find(bus, task_id, capability=capability) for task_id in chosen["task_ids"]]
    found = await dead.letters(bus, capability=capability, cause=chosen["cause"], limit=_ALL)
    return found[::-1]


def _check(*, task_ids: tuple[str, ...], capability: str | None, cause: str | None, every: bool) -> None:
    if task_ids and (cause or every):
        message = "give TASKs, or --capability, --cause or --all, not both"
        raise click.UsageError(message)
    if not (task_ids or capability or cause or every):
        message = "say which: TASKs, --capability, --cause or --all"
        raise click.UsageError(message)
