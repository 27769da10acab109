"""``callboard ctx``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import click

from callboard.cli.output import SPAN, emit, shorten, stamp, table, tell
from callboard.cli.session import Session, example, global_options, json_option, pass_session

if TYPE_CHECKING:
    from callboard.agents.context import Change, Context, Entry

F = TypeVar("F", bound=Callable[..., Any])


@click.group("ctx")
def command() -> None:
    """Read, set and watch what agents share: the shared context."""


def _scoped(function: F) -> F:
    """Add the options that choose a scope; ``global`` without them."""
    options = (
        click.option("--run", metavar="ID", help="What belongs to this run."),
        click.option("--private", metavar="ADDRESS", help="What this agent keeps for itself, as clerk/ann."),
        json_option,
        global_options,
    )
    for option in reversed(options):
        function = option(function)
    return function


def _scope(run: str | None, private: str | None) -> str:
    if run is not None and private is not None:
        message = "--run and --private name two scopes: give one"
        raise click.UsageError(message)
    if run is not None:
        return f"run/{run}"
    return "global" if private is None else f"private/{private}"


@asynccontextmanager
async def _open(session: Session, scope: str) -> AsyncIterator[Context]:
    import getpass

    from callboard.agents.context import Context

    try:
        who = getpass.getuser()
    except (OSError, KeyError):
        who = "somebody"
    async with session.bus("ctx") as bus:
        yield Context(bus, scope=scope, by=f"cli:{who}")


@command.command("get", epilog=example("callboard ctx get plan.title", "callboard ctx get sum --run 7f3a"))
@click.argument("key")
@_scoped
@pass_session
def get(session: Session, /, key: str, *, run: str | None, private: str | None) -> None:
    """Print the value of KEY as JSON; with --json also its revision, who wrote it and when."""
    from callboard.runtime.errors import NotFoundError

    scope = _scope(run, private)

    async def work() -> Entry:
        async with _open(session, scope) as context:
            found = await context.entry(key)
        if found is None:
            message = f"{scope} has no {key!r}: `callboard ctx ls` lists what there is"
            raise NotFoundError(message)
        return found

    found = session.run(work())
    if session.json:
        emit(found)
    else:
        tell(_json(found.value))


@command.command("set", epilog=example("callboard ctx set plan.title Spring", "callboard ctx set lock 1 --if 0"))
@click.argument("key")
@click.argument("value")
@click.option("--ttl", type=SPAN, help="How long it stands, as 2h.  [default: for ever]")
@click.option(
    "--if", "expected", metavar="REVISION", type=click.IntRange(0), help="Only if this stands; 0: if nothing does."
)
@_scoped
@pass_session
def set_(
    session: Session,
    /,
    key: str,
    value: str,
    *,
    ttl: float | None,
    expected: int | None,
    run: str | None,
    private: str | None,
) -> None:
    """Set KEY to VALUE, which is JSON, or else taken as text."""
    import msgspec

    try:
        plain: object = msgspec.json.decode(value)
    except msgspec.DecodeError:
        plain = value
    scope = _scope(run, private)

    async def work() -> int:
        async with _open(session, scope) as context:
            return await context.set(key, plain, ttl=ttl, expected=expected)

    revision = session.run(work())
    if session.json:
        emit({"scope": scope, "key": key, "revision": revision})
    else:
        tell(f"{key} = {shorten(_json(plain), 60)}, revision {revision}")


@command.command("ls", epilog=example("callboard ctx ls", "callboard ctx ls plan. --run 7f3a --json"))
@click.argument("prefix", default="")
@_scoped
@pass_session
def ls(session: Session, /, prefix: str, *, run: str | None, private: str | None) -> None:
    """List keys that begin with PREFIX, with their values."""
    scope = _scope(run, private)

    async def work() -> list[Entry]:
        async with _open(session, scope) as context:
            return list((await context.ls(prefix)).values())

    found = session.run(work())
    if session.json:
        emit(found)
        return
    table(
        [(each.key, shorten(_json(each.value), 60), each.by, stamp(each.at), stamp(each.expires_at)) for each in found],
        head=("KEY", "VALUE", "BY", "AT", "UNTIL"),
        empty=f"nothing is shared in {scope}",
    )


@command.command("history", epilog=example("callboard ctx history plan.title"))
@click.argument("key")
@_scoped
@pass_session
def history(session: Session, /, key: str, *, run: str | None, private: str | None) -> None:
    """List the changes of KEY, oldest first: who, when, from what to what."""
    scope = _scope(run, private)

    async def work() -> list[Change]:
        async with _open(session, scope) as context:
            return await context.history(key)

    found = session.run(work())
    if session.json:
        emit(found)
        return
    table(
        [(str(each.revision), stamp(each.at), each.by or "-", _old(each), _new(each)) for each in found],
        head=("REVISION", "AT", "BY", "OLD", "NEW"),
        empty=f"{scope} never had {key!r}",
    )


@command.command("watch", epilog=example("callboard ctx watch plan.", "callboard ctx watch --all --run 7f3a --json"))
@click.argument("prefix", default="")
@click.option("--all", "from_start", is_flag=True, help="Begin with the oldest change that is kept.")
@_scoped
@pass_session
def watch(session: Session, /, prefix: str, *, from_start: bool, run: str | None, private: str | None) -> None:
    """Print every change of keys that begin with PREFIX as it happens, until Ctrl-C; none is left out."""
    scope = _scope(run, private)

    async def work() -> None:
        async with _open(session, scope) as context:
            async for change in context.watch(prefix, from_start=from_start):
                if session.json:
                    emit(change)
                else:
                    tell(f"{stamp(change.at)}  {change.by or '-'}  {change.key}: {_old(change)} -> {_new(change)}")

    session.run(work())


@command.command("rm", epilog=example("callboard ctx rm plan.title", "callboard ctx rm plan. --below --run 7f3a"))
@click.argument("key")
@click.option("--below", is_flag=True, help="All keys that begin with KEY.")
@_scoped
@pass_session
def rm(session: Session, /, key: str, *, below: bool, run: str | None, private: str | None) -> None:
    """Delete KEY; its history stays."""
    from callboard.runtime.errors import NotFoundError

    scope = _scope(run, private)

    async def work() -> int:
        async with _open(session, scope) as context:
            return await context.clear(key) if below else int(await context.delete(key))

    count = session.run(work())
    if not count:
        message = f"{scope} has no {key!r}"
        raise NotFoundError(message)
    if session.json:
        emit({"scope": scope, "deleted": count})
    else:
        tell(f"{count} deleted")


def _old(change: Change) -> str:
    return "-" if change.is_first else shorten(_json(change.old), 40)


def _new(change: Change) -> str:
    return "deleted" if change.is_deleted else shorten(_json(change.new), 40)


def _json(value: object) -> str:
    import msgspec

    return msgspec.json.encode(value).decode()
