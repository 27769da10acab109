"""``callboard find``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from callboard.cli.output import emit, note, shorten, table, tell
from callboard.cli.session import Session, example, global_options, json_option, pass_session

if TYPE_CHECKING:
    from callboard.runtime.registry.message import AgentView, Found, PoolWorkerView, Query

_STATUSES = ("idle", "busy", "paused", "failed", "draining", "suspect", "offline")


def _labels(_: click.Context, param: click.Parameter, value: Sequence[str]) -> dict[str, str]:
    found = {}
    for text in value:
        name, sign, rest = text.partition("=")
        if not sign or not name:
            message = f"{text!r} is no label: write NAME=VALUE"
            raise click.BadParameter(message, param=param)
        found[name] = rest
    return found


@click.command(
    "find",
    epilog=example(
        "callboard find search",
        "callboard find search --label zone=a --status idle",
        'callboard ask "$(callboard find summarise --pick)" Text \'{"text": "..."}\'',
    ),
)
@click.argument("capability", required=False, default="")
@click.option("--all", "all_", multiple=True, metavar="CAPABILITY", help="It can do this too; may be repeated.")
@click.option("--any", "any_", multiple=True, metavar="CAPABILITY", help="It can do one of these; to be repeated.")
@click.option("--type", "type_", default="", help="Only agents of this type.")
@click.option("--label", "labels", multiple=True, metavar="K=V", callback=_labels, help="It has this label.")
@click.option("--status", multiple=True, type=click.Choice(_STATUSES), help="It is so.  [default: all but offline]")
@click.option("--host", default="", help="It runs there.")
@click.option("--version", default="", help="Its code has this version.")
@click.option("--limit", type=click.IntRange(1, 100_000), default=1000, show_default=True)
@click.option("--pick", is_flag=True, help="Choose the least busy one, keep its place for 2 s and print its address.")
@json_option
@global_options
@pass_session
def command(session: Session, /, *, pick: bool, **what: Any) -> None:  # noqa: ANN401 - click's
    """Find who can do CAPABILITY: agents, hosted or in other languages, and workers with slots.

    Ends with status 5 when nobody can, and names the nearest capabilities that exist. Without CAPABILITY and other
    conditions it lists all agents.
    """
    from callboard.runtime.registry.message import Query

    query = Query(
        capability=what["capability"],
        all=list(what["all_"]),
        any=list(what["any_"]),
        type=what["type_"],
        labels=what["labels"],
        status=list(what["status"]),
        host=what["host"],
        version=what["version"],
        limit=what["limit"],
    )
    if pick:
        _pick(session, query)
    else:
        _find(session, query)


def _find(session: Session, /, query: Query) -> None:
    from callboard.runtime import census
    from callboard.runtime.errors import NoAgentError

    async def work() -> Found:
        async with session.bus("find") as bus:
            return await census.find(bus, query)

    found = session.run(work())
    if session.json:
        emit(found)
    elif found.agents or found.workers:
        show(found)
    if not (found.agents or found.workers):
        misfit = session.run(_misfit(session, query)) if _has_more(query) and query.capability in found.near else ""
        raise NoAgentError(misfit or _nobody(query, found), near=tuple(found.near))


def _has_more(query: Query) -> bool:
    """Return whether it asks for more than a capability that somebody offers now."""
    from callboard.runtime.registry.message import Query

    return not query.status and query != Query(capability=query.capability, limit=query.limit)


async def _misfit(session: Session, /, query: Query) -> str:
    """Return what somebody who offers the capability lacks, as a pick says it; "" when those who fit are silent."""
    from callboard.runtime import census, labels, roster
    from callboard.runtime.errors import BusError, NoAgentError, RegistryAwayError

    async with session.bus("find") as bus:
        try:
            # nobody fits, so that no place is reserved
            _ = await census.pick(bus, query)
        except NoAgentError as error:
            if set(error.refused) <= set(_STATUSES):
                return ""
            text = str(error)
        except (BusError, RegistryAwayError):
            # we may not pick, or nobody leads any more: the answer of the find stands
            return ""
        else:
            return ""
        groups = (await roster.heard(bus)).groups.values() if query.labels else ()
    empty = [
        group.group
        for group in groups
        if not group.processes and query.capability in group.capabilities and labels.fits(group.labels, query.labels)
    ]
    return f"{text}; group {', '.join(empty)} bears the labels and runs no process now" if empty else text


def _nobody(query: Query, found: Found) -> str:
    from callboard.runtime.near import hint

    if not query.capability:
        return f"no agent fits{hint(query.type, found.near)}"
    if query.capability in found.near:
        if query.status:
            return f"nobody who offers {query.capability!r} fits what else was asked for"
        here = f"`callboard find {query.capability}"
        if _has_more(query):
            what = f"nobody who offers {query.capability!r} is heard now and fits what else was asked for"
            return f"{what}; {here}` shows who is heard, {here} --status offline` who fell silent"
        return f"nobody who offers {query.capability!r} is heard now; {here} --status offline` shows who fell silent"
    if found.near:
        return f"nobody offers {query.capability!r}; near it: {', '.join(found.near)}"
    return f"nobody offers {query.capability!r}, and no capability has a name like it; see `callboard agents ls`"


def show(found: Found) -> None:
    """Print agents and workers as tables."""
    if found.agents:
        table(
            [_agent(view) for view in found.agents],
            head=("AGENT", "STATUS", "LOAD", "BUSY", "WAITING", "WEIGHT", "CAPABILITIES", "WORKER", "LABELS", ""),
            empty="no agent",
        )
    if found.workers:
        if found.agents:
            click.echo()
        table(
            [_worker(view) for view in found.workers],
            head=("WORKER", "STATUS", "BUSY/SLOTS", "BACKLOG", "HOST", "LABELS"),
            empty="no worker",
        )
    if found.next:
        note(f"more follow {found.next}; see --limit")


def _agent(view: AgentView) -> tuple[str, ...]:
    record = view.record
    return (
        record.address,
        view.status,
        f"{view.load:.2f}",
        str(view.busy),
        str(view.waiting),
        str(record.weight),
        ",".join(spec.name for spec in record.capabilities) or "-",
        view.worker or (f"(on {record.host})" if record.host else "-"),
        ",".join(f"{name}={value}" for name, value in sorted(record.labels.items())) or "-",
        shorten(view.problem, 50),
    )


def _worker(view: PoolWorkerView) -> tuple[str, ...]:
    return (
        view.worker,
        view.status,
        f"{view.busy}/{view.slots}",
        str(view.backlog),
        view.host,
        ",".join(f"{name}={value}" for name, value in sorted(view.labels.items())) or "-",
    )


def _pick(session: Session, /, query: Query) -> None:
    from callboard.runtime import census
    from callboard.runtime.errors import NoAgentError
    from callboard.runtime.labels import split
    from callboard.runtime.registry.message import Picked

    async def work() -> Picked:
        async with session.bus("pick") as bus:
            return await census.pick(bus, query)

    picked = session.run(work())
    if session.json:
        emit(picked)
        return
    if picked.agent is None:
        name, wanted = split(picked.pool)
        labels = f" --labels {','.join(f'{key}={value}' for key, value in wanted.items())}" if wanted else ""
        message = f"{picked.why.text}: give it work with `callboard submit {name}{labels}`"
        raise NoAgentError(message)
    tell(picked.agent.record.address)
    note(picked.why.text)
