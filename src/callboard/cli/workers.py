"""``callboard workers``: those that run, on all hosts."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import click

from callboard.cli.output import emit, stamp, table, tell
from callboard.cli.session import Session, example, global_options, json_option, pass_session

if TYPE_CHECKING:
    from callboard.runtime.beat import Beat
    from callboard.runtime.bus.base import Bus
    from callboard.runtime.control import Order
    from callboard.runtime.group_beat import GroupBeat
    from callboard.runtime.roster import Fleet


@click.group("workers")
def command() -> None:
    """List, show, drain, scale and stop the workers that run."""


@command.command(
    "ls", epilog=example("callboard workers ls", "callboard workers ls --json | jq -r '.workers[].worker'")
)
@json_option
@global_options
@pass_session
def ls(session: Session) -> None:
    """List the workers that are alive, and the groups that keep them; listens for a little over a second."""
    from callboard.runtime import roster

    async def work() -> Fleet:
        async with session.bus("workers-ls") as bus:
            return await roster.fleet(bus)

    found = session.run(work())
    if session.json:
        emit({"workers": found.workers, "groups": found.groups})
        return
    table(
        [
            (
                beat.worker,
                beat.status,
                str(beat.pid),
                stamp(beat.started_at),
                ", ".join(f"{c.name} {c.busy}/{c.slots}{' paused' if c.is_paused else ''}" for c in beat.capabilities),
                ", ".join(f"{a.kind} {a.running}/{a.active} ({len(a.partitions)})" for a in beat.actors) or "-",
                _pairs(beat.labels),
                beat.group or "-",
            )
            for beat in found.workers
        ],
        head=("WORKER", "STATUS", "PID", "STARTED", "BUSY/SLOTS", "ACTORS BUSY/AWAKE (PARTITIONS)", "LABELS", "GROUP"),
        empty="no worker was heard; start one with `callboard worker start MODULE`",
    )
    if found.groups:
        click.echo()
        table(
            [
                (group.group, group.status, _size(group), ", ".join(group.capabilities) or "-", group.why or "-")
                for group in found.groups
            ],
            head=("GROUP", "STATUS", "PROCESSES", "CAPABILITIES", "WHY SO MANY"),
            empty="",
        )


def _size(group: GroupBeat) -> str:
    ready = sum(process.status == "ready" for process in group.processes)
    leaving = sum(process.status == "leaving" for process in group.processes)
    text = f"{ready} of {group.wanted}"
    if group.bounds is not None:
        text += f" ({group.bounds.min} to {group.bounds.max})"
    return text + (f", {leaving} leaving" if leaving else "")


def _pairs(labels: dict[str, str]) -> str:
    return ",".join(f"{key}={value}" for key, value in labels.items()) or "-"


@command.command("show", epilog=example("callboard workers show shop-4211-a1b2c3 --json"))
@click.argument("name")
@json_option
@global_options
@pass_session
def show(session: Session, /, name: str) -> None:
    """Show one worker, or one group, NAME: an id of `workers ls`."""
    from callboard.runtime import roster
    from callboard.runtime.errors import NotFoundError

    async def work() -> Beat | GroupBeat:
        async with session.bus("workers-show") as bus:
            found = await roster.targets(bus, name)
            if len(found.groups) != 1 and len(found.workers) != 1:
                message = f"{name} is a host with several: {', '.join(found.names)}"
                raise NotFoundError(message)
            return found.groups[0] if found.groups else found.workers[0]

    found = session.run(work())
    if session.json:
        emit(found)
        return
    for line in _lines(found):
        tell(line)


def _lines(found: Beat | GroupBeat) -> list[str]:
    from callboard.runtime.beat import Beat
    from callboard.runtime.labels import told

    head = [
        f"host      {found.host}, process {found.pid}, version {found.version}",
        f"status    {found.status}, started {stamp(found.started_at)}",
        f"labels    {_pairs(found.labels)}",
    ]
    if not isinstance(found, Beat):
        work = [
            f"work      {told(work.capability)}: {work.pending} waiting, {work.in_flight} in flight, "
            f"the oldest waits {work.oldest_s:.0f} s{', paused' if work.is_paused else ''}"
            for work in found.backlog
        ]
        processes = [f"process   {each.slot}: {each.pid} {each.status}" for each in found.processes]
        return [f"group     {found.group}", *head, f"processes {_size(found)}: {found.why or '-'}", *work, *processes]
    pools = [
        f"pool      {told(load.name)}: {load.busy} of {load.slots} slots busy, {load.unsettled} being recorded, "
        f"{load.backlog} waited at the last delivery{', paused' if load.is_paused else ''}"
        for load in found.capabilities
    ]
    actors = [
        f"actors    {load.kind}: {load.running} running, {load.waiting} with mail, {load.active} awake, "
        f"{len(load.partitions)} partitions"
        for load in found.actors
    ]
    group = [f"group     {found.group}"] if found.group else []
    return [f"worker    {found.worker}", *head, *group, f"fetched   {stamp(found.fetched_at)}", *pools, *actors]


@command.command(
    "drain", epilog=example("callboard workers drain shop-4211-a1b2c3", "callboard workers drain shop --wait")
)
@click.argument("name")
@click.option("--wait", is_flag=True, help="Wait until they have stopped.")
@json_option
@global_options
@pass_session
def drain(session: Session, /, name: str, *, wait: bool) -> None:
    """Drain NAME: a worker, a group, or a host, which means all that run there.

    They take nothing new, finish what they run within their grace time, hand back the rest and end with status 0. One
    worker of a group that scales itself is replaced when the work wants it.
    """
    _end(session, name, op="drain", wait=wait, words=("draining", "drained"))


@command.command("stop", epilog=example("callboard workers stop shop-4211-a1b2c3 --wait"))
@click.argument("name")
@click.option("--wait", is_flag=True, help="Wait until they have stopped.")
@json_option
@global_options
@pass_session
def stop(session: Session, /, name: str, *, wait: bool) -> None:
    """Stop NAME at once: a worker, a group, or a host. What they run is cut off and goes on elsewhere."""
    _end(session, name, op="stop", wait=wait, words=("stopping", "stopped"))


def _end(session: Session, name: str, *, op: str, wait: bool, words: tuple[str, str]) -> None:
    from callboard.runtime import roster
    from callboard.runtime.control import Order

    async def work() -> list[str]:
        async with session.bus(f"workers-{op}") as bus:
            found = await roster.targets(bus, name)
            groups = {group.group for group in found.groups}
            # a group tells its own workers, and would replace those that went without its knowledge
            ordered = [*sorted(groups), *(beat.worker for beat in found.workers if beat.group not in groups)]
            await _order(bus, ordered, Order(op=op))
            if wait:
                await roster.wait_gone(bus, found.names)
            return ordered

    chosen = session.run(work())
    word = words[wait]
    if session.json:
        emit({word: chosen})
    else:
        click.echo(f"{word}: {', '.join(chosen)}")


async def _order(bus: Bus, names: Collection[str], what: Order) -> None:
    from callboard.runtime import roster

    for name in names:
        await roster.order(bus, name, what)


@command.command(
    "scale",
    epilog=example(
        "callboard workers scale shop-4211-a1b2c3 4",
        "callboard workers scale shop-4211-a1b2c3 --min 0 --max 12",
        "callboard workers scale shop 16 --slots search",
    ),
)
@click.argument("name")
@click.argument("count", type=click.IntRange(0, 4096), required=False)
@click.option("--slots", "capability", metavar="CAPABILITY", help="COUNT is the slots of this capability.")
@click.option("--min", "min_", type=click.IntRange(0, 512), help="The fewest processes of a group that scales itself.")
@click.option("--max", "max_", type=click.IntRange(1, 512), help="The most.")
@json_option
@global_options
@pass_session
def scale(
    session: Session,
    /,
    name: str,
    *,
    count: int | None,
    capability: str | None,
    min_: int | None,
    max_: int | None,
) -> None:
    """Give the group NAME COUNT processes, or with --slots each worker of NAME COUNT slots of a capability.

    A group is what `worker start` makes with --processes or --max; its id stands in `workers ls`. Processes too many
    finish what they run, however long it takes; with 0 the group waits to be scaled up again. Slots last until the
    process ends; NAME may then be a worker, a group or a host.
    """
    from callboard.runtime.control import Order

    _check_scale(count, capability, min_, max_)
    if capability is not None:
        chosen = _give_slots(session, name, capability, count or 0)
        _told(session, {"workers": chosen, "capability": capability, "slots": count})
        return
    _scale_group(session, name, Order(op="scale", processes=count, min=min_, max=max_))
    answer: dict[str, object] = {"group": name}
    answer |= {key: value for key, value in (("processes", count), ("min", min_), ("max", max_)) if value is not None}
    _told(session, answer)


def _check_scale(count: int | None, capability: str | None, min_: int | None, max_: int | None) -> None:
    bounds = min_ is not None or max_ is not None
    if (count is None) is not bounds:
        message = "give COUNT, or --min and --max of a group that scales itself"
        raise click.UsageError(message)
    if capability is not None and not count:
        message = "--slots wants a COUNT of at least 1; `callboard pause CAPABILITY` holds it back on all workers"
        raise click.UsageError(message)


def _told(session: Session, answer: dict[str, object]) -> None:
    if session.json:
        emit(answer)
    elif "slots" in answer:
        workers = answer["workers"]
        names = ", ".join(workers) if isinstance(workers, list) else ""
        click.echo(f"{answer['capability']} has {answer['slots']} slots in {names}")
    else:
        rest = ", ".join(f"{key} {value}" for key, value in answer.items() if key != "group")
        click.echo(f"{answer['group']}: {rest}")


def _give_slots(session: Session, name: str, capability: str, count: int) -> list[str]:
    from callboard.runtime import roster
    from callboard.runtime.control import Order

    async def work() -> list[str]:
        async with session.bus("workers-scale") as bus:
            found = await roster.targets(bus, name, capability=capability)
            chosen = [beat.worker for beat in found.workers]
            await _order(bus, chosen, Order(op="slots", capability=capability, slots=count))
            return chosen

    return session.run(work())


def _scale_group(session: Session, name: str, order: Order) -> None:
    from callboard.runtime import roster
    from callboard.runtime.errors import InputError

    async def work() -> None:
        async with session.bus("workers-scale") as bus:
            found = await roster.targets(bus, name)
            if name not in {group.group for group in found.groups}:
                groups = sorted({group.group for group in found.groups} | {beat.group for beat in found.workers} - {""})
                hint = f"its groups are {', '.join(groups)}" if groups else "start one with --processes or --max"
                message = f"{name} is no group of processes; {hint}"
                raise InputError(message)
            await roster.order(bus, name, order)

    session.run(work())
