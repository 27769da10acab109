"""``callboard schedule``."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from callboard.cli.output import SPAN, UNTIL, emit, shorten, stamp, table
from callboard.cli.session import Session, example, global_options, json_option, pass_session

if TYPE_CHECKING:
    from callboard.runtime.schedule import Schedule

_CRON_FIELDS = 5


@click.group("schedule")
def command() -> None:
    """Plan tasks. The broker holds the schedules and fires them; no other process is needed."""


@command.command(
    "add",
    epilog=example(
        """callboard schedule add nightly report '{"days": 1}' --cron '30 3 * * *' --tz Europe/Berlin""",
        "callboard schedule add pulse ping --every 90s",
        "callboard schedule add launch announce --at 2026-11-21T09:30:00Z",
    ),
)
@click.argument("name")
@click.argument("capability")
@click.argument("payload", metavar="[JSON]", required=False)
@click.option("--every", "every_s", type=SPAN, help="Fire so often, 1s at least.")
@click.option("--cron", help="Fire by a cron line of five fields, or six with seconds first, or @hourly and the like.")
@click.option("--at", type=UNTIL, help="Fire once: at a time, or after a span. NAME becomes the task's id.")
@click.option("--tz", "time_zone", help="Time zone of --cron, such as Europe/Berlin.  [default: UTC]")
@click.option("--lane", type=click.Choice(["high", "normal", "low"]), default="normal", show_default=True)
@json_option
@global_options
@pass_session
def add(session: Session, /, name: str, capability: str, payload: str | None, **options: Any) -> None:  # noqa: ANN401
    """Plan a task for CAPABILITY under NAME; an earlier plan of that name is replaced."""
    from callboard.cli.submit import read_payload
    from callboard.runtime import subjects

    given = [key for key in ("every_s", "cron", "at") if options[key] is not None]
    if len(given) != 1:
        message = "give one of --every, --cron and --at"
        raise click.UsageError(message)
    if options["time_zone"] and given != ["cron"]:
        message = "--tz belongs to --cron"
        raise click.UsageError(message)
    subjects.check_name(capability, what="capability")
    rule = session.run(_add(session, name, capability, read_payload(payload), **options))
    if session.json:
        emit({"name": name, "capability": capability, "rule": rule})
    else:
        click.echo(f"{name}: {capability} {rule}")


async def _add(
    session: Session,
    /,
    name: str,
    capability: str,
    data: bytes | None,
    *,
    every_s: float | None,
    cron: str | None,
    at: datetime | None,
    time_zone: str | None,
    lane: Any,  # noqa: ANN401 - checked by click
) -> str:
    from msgspec import UNSET

    from callboard.runtime.client import Client
    from callboard.runtime.clock import SYSTEM_CLOCK
    from callboard.runtime.errors import DeadlineError

    value = UNSET if data is None else data
    async with session.bus("schedule-add") as bus:
        client = Client(bus)
        if at is not None:
            delay_s = (at - SYSTEM_CLOCK.now()).total_seconds()
            if delay_s <= 0:
                message = f"{at.isoformat()} has passed; nothing was planned"
                raise DeadlineError(message)
            _ = await client.submit(capability, value, id=name, lane=lane, delay_s=delay_s)
            return f"@at {at.isoformat()}"
        rule = f"@every {every_s:g}s" if every_s is not None else _rule(cron or "")
        await client.schedule(name, capability, value, rule=rule, time_zone=time_zone, lane=lane)
        return rule


def _rule(cron: str) -> str:
    # people write five fields; the server wants the seconds first
    return f"0 {cron.strip()}" if len(cron.split()) == _CRON_FIELDS else cron.strip()


@command.command("ls", epilog=example("callboard schedule ls --json"))
@json_option
@global_options
@pass_session
def ls(session: Session) -> None:
    """List what is planned: recurring tasks, later ones and long retries."""
    from callboard.runtime import schedule

    async def work() -> list[Schedule]:
        async with session.bus("schedule-ls") as bus:
            return await schedule.schedules(bus)

    found = session.run(work())
    if session.json:
        emit(found)
        return
    table(
        [
            (x.name, x.capability, x.rule, x.time_zone or "", x.lane, stamp(x.set_at), shorten(x.payload or "", 40))
            for x in found
        ],
        head=("NAME", "CAPABILITY", "RULE", "ZONE", "LANE", "SET", "PAYLOAD"),
        empty="nothing is planned",
    )


@command.command("rm", epilog=example("callboard schedule rm nightly"))
@click.argument("name")
@json_option
@global_options
@pass_session
def rm(session: Session, /, name: str) -> None:
    """Remove a plan. Firings already made still run."""
    from callboard.runtime import subjects
    from callboard.runtime.client import Client
    from callboard.runtime.errors import NotFoundError

    async def work() -> None:
        async with session.bus("schedule-rm") as bus:
            if await Client(bus).unschedule(name):
                return
            if not await bus.purge(subjects.LATER, subject=subjects.later(name)):
                message = f"no plan is named {name!r}; see `callboard schedule ls`"
                raise NotFoundError(message)

    session.run(work())
    if session.json:
        emit({"removed": name})
    else:
        click.echo(f"removed {name}")
