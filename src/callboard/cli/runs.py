"""``callboard runs``."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from callboard.cli.output import SPAN, UNTIL, emit, ended, note, shorten, stamp, table, tell
from callboard.cli.session import Session, example, global_options, json_option, pass_session
from callboard.cli.submit import read_payload

if TYPE_CHECKING:
    from decimal import Decimal

    from callboard.agents.run_record import AgentRun
    from callboard.agents.run_view import RunView
    from callboard.runtime.bus.base import Bus

STATUSES = ("running", "waiting", "done", "partial", "failed", "cancelled")
_DEPTH = 10


@click.group("runs")
def command() -> None:
    """Start, list, show, cancel and retry runs of flows."""


@command.command(
    "start",
    epilog=example(
        """callboard runs start digest '{"folder": "notes"}' --wait""",
        "callboard runs start digest @job.json --id 2026-11-21 --deadline 2h --json",
    ),
)
@click.argument("flow")
@click.argument("payload", metavar="[JSON]", required=False)
@click.option("--wait", is_flag=True, help="Wait for its end and print the output.")
@click.option("--timeout", "timeout_s", type=SPAN, help="With --wait: give up waiting after this; the run goes on.")
@click.option("--id", "run_id", default="", help="The run's id; a second start under it is the first one.")
@click.option("--type", "kind", help="Name of the job's type; a flow with one type of job needs none.")
@click.option("--deadline", type=UNTIL, help="Not wanted after this: a span from now, or a time.")
@json_option
@global_options
@pass_session
def start(session: Session, /, flow: str, payload: str | None, **options: Any) -> None:  # noqa: ANN401 - click's
    """Start a run of FLOW. JSON is its job: `@FILE` reads it from a file, `-` from standard input.

    Prints the run's name, or with --wait its output. The run goes on whatever becomes of this command.
    """
    data = read_payload(payload)
    session.run(_start(session, flow, b"{}" if data is None else data, **options))


async def _start(
    session: Session,
    /,
    flow: str,
    data: bytes,
    *,
    wait: bool,
    timeout_s: float | None,
    run_id: str,
    kind: str | None,
    deadline: datetime | None,
) -> None:
    from callboard.agents import runs
    from callboard.runtime.client import Client

    async with session.bus("runs-start") as bus:
        client = Client(bus)
        try:
            run = await runs.start(client, flow, data, id=run_id, type=kind, deadline=deadline)
        finally:
            await client.close()
        if not wait:
            if session.json:
                emit({"run": run})
            else:
                tell(run)
            return
        found = await _waited(session, bus, run, timeout_s)
    _finish(session, found)


async def _waited(session: Session, /, bus: Bus, run: str, timeout_s: float | None) -> RunView:
    from callboard.agents import runs
    from callboard.runtime.errors import TaskTimeoutError

    if not session.json:
        note(f"started {run}")
    found = await runs.wait(bus, run, timeout_s=timeout_s)
    if found is None:
        message = f"{run} has not ended after {timeout_s:g} s; it goes on: `callboard watch {run}`"
        raise TaskTimeoutError(message)
    return found


def _finish(session: Session, /, found: RunView) -> None:
    """Print what a run came to; a failed one ends the command with status 1."""
    import json

    if session.json:
        emit(found)
    elif found.status in ("done", "partial"):
        output = found.output
        tell(output if isinstance(output, str) else json.dumps(output, indent=2, ensure_ascii=False))
    if found.missing and not session.json:
        note(f"partial: without {', '.join(found.missing)}; `callboard runs retry {found.run}` asks these again")
    if found.status in ("failed", "cancelled"):
        if not session.json:
            why = found.error if found.status == "cancelled" else f"{found.code}: {found.error}"
            note(f"{found.run} {ended(found.status, why)}")
        click.get_current_context().exit(1)


@command.command("ls", epilog=example("callboard runs ls", "callboard runs ls digest --status failed --json"))
@click.argument("flow", required=False, default="")
@click.option("--status", type=click.Choice(STATUSES), help="Only those.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True)
@json_option
@global_options
@pass_session
def ls(session: Session, /, flow: str, *, status: str | None, limit: int) -> None:
    """List the latest runs, those of FLOW only when it is named."""
    from callboard.agents import runs
    from callboard.agents.run_view import RunLine

    async def work() -> list[RunLine]:
        async with session.bus("runs-ls") as bus:
            return await runs.ls(bus, flow=flow, limit=limit)

    found = [line for line in session.run(work()) if status in (None, line.status)]
    if session.json:
        emit(found)
        return
    table(
        [
            (
                line.run,
                line.status,
                str(line.attempt),
                stamp(line.began_at),
                stamp(line.ended_at),
                "-" if line.agents is None else str(line.agents),
                _money(line.cost_usd),
                shorten(line.error or (f"without {', '.join(line.missing)}" if line.missing else ""), 60),
            )
            for line in found
        ],
        head=("RUN", "STATUS", "ATTEMPT", "BEGAN", "ENDED", "AGENTS", "USD", ""),
        empty="no run fits",
    )


@command.command(
    "show", epilog=example("callboard runs show digest/2026-11-21", "callboard runs show digest/7f --json")
)
@click.argument("run")
@json_option
@global_options
@pass_session
def show(session: Session, /, run: str) -> None:
    """Show one run: its job, its agents with what each was sent and answered, its output, its price."""
    found = session.run(_view(session, run))
    if session.json:
        emit(found)
        return
    for name, text in _lines(found):
        tell(f"{name + ':':<12}{text}")
    if found.agents:
        click.echo()
        table(
            [_row(part) for part in found.agents],
            head=("PART", "STATUS", "AGENT", "TRY", "SECONDS", "TOKENS", "USD", "SAYS"),
            empty="",
        )


async def _view(session: Session, /, run: str) -> RunView:
    from callboard.agents import runs

    async with session.bus("runs-show") as bus:
        return await runs.show(bus, run)


def _lines(found: RunView) -> list[tuple[str, str]]:
    lines = [("run", found.run), ("status", ended(found.status, found.error))]
    if found.attempt > 1:
        lines.append(("attempt", str(found.attempt)))
    if found.parent:
        lines.append(("part of", found.parent))
    if found.waits_for:
        lines.append(("waits for", ", ".join(found.waits_for)))
    lines += [("began", stamp(found.began_at)), ("ended", stamp(found.ended_at)), ("until", stamp(found.deadline))]
    lines.append(("job", shorten(_json(found.job), 100)))
    if found.status in ("done", "partial"):
        lines.append(("output", shorten(_json(found.output), 100)))
    if found.missing:
        lines.append(("without", ", ".join(found.missing)))
    lines.append(("cost", f"{found.usage.tokens} tokens, {_money(found.cost_usd)} USD"))
    return lines


def _row(part: AgentRun) -> tuple[str, ...]:
    result = part.result
    took = (part.ended_at - part.began_at).total_seconds() if part.ended_at and part.began_at else None
    says = part.error or ("" if result is None else result.text or _json(result.output))
    return (
        part.name,
        part.status,
        part.agent or f"pool {part.capability}",
        str(part.try_),
        "-" if took is None else f"{took:.1f}",
        "-" if result is None else str(result.usage.tokens),
        "-" if result is None else _money(result.cost_usd),
        shorten(says, 60),
    )


@command.command("tree", epilog=example("callboard runs tree digest/2026-11-21"))
@click.argument("run")
@json_option
@global_options
@pass_session
def tree(session: Session, /, run: str) -> None:
    """Show a run with its agents below it, and the runs that these are, and so on."""

    async def work() -> dict[str, Any]:
        async with session.bus("runs-tree") as bus:
            return await _branch(bus, run, _DEPTH)

    found = session.run(work())
    if session.json:
        emit(found)
    else:
        _print(found, "")


async def _branch(bus: Bus, run: str, depth: int) -> dict[str, Any]:
    from callboard.agents import runs
    from callboard.agents.run_record import PREFIX
    from callboard.runtime.errors import NotFoundError

    found = await runs.show(bus, run)
    parts = []
    for part in found.agents:
        below = None
        if depth and part.agent.startswith(PREFIX):
            try:
                below = await _branch(bus, part.agent, depth - 1)
            except NotFoundError:
                # it was never begun
                below = None
        messages = [{"is": "sent", "at": part.began_at, "value": part.input}]
        if part.result is not None or part.error:
            messages.append({"is": "answered", "at": part.ended_at, "value": part.result, "error": part.error})
        parts.append({"part": part, "messages": messages, "run": below})
    return {"run": found, "agents": parts}


def _print(branch: dict[str, Any], indent: str) -> None:
    run: RunView = branch["run"]
    tell(f"{indent}{run.run}  {run.status}  {_money(run.cost_usd)} USD  {shorten(run.error, 60)}".rstrip())
    for each in branch["agents"]:
        part: AgentRun = each["part"]
        says = part.error or ("" if part.result is None else part.result.text)
        who = part.agent or f"pool {part.capability}"
        tell(f"{indent}  {part.name}  {part.status}  {who}  {shorten(says, 60)}".rstrip())
        if each["run"] is not None:
            _print(each["run"], indent + "    ")


@command.command("cancel", epilog=example("callboard runs cancel digest/2026-11-21 --reason 'wrong folder'"))
@click.argument("run")
@click.option("--reason", default="cancelled by request", help="For those who ask later.")
@click.option("--timeout", "timeout_s", type=SPAN, default="30s", help="How long to wait until it has ended.")
@json_option
@global_options
@pass_session
def cancel(session: Session, /, run: str, *, reason: str, timeout_s: float) -> None:
    """End a run with its agents and its tasks, and wait until it has ended.

    Once this command has said so, it will be done, whatever dies meanwhile.
    """
    from callboard.agents import runs
    from callboard.runtime.client import Client

    async def work() -> RunView | None:
        async with session.bus("runs-cancel") as bus:
            client = Client(bus)
            try:
                await runs.cancel(client, run, reason=reason)
            finally:
                await client.close()
            return await runs.wait(bus, run, timeout_s=timeout_s)

    found = session.run(work())
    if session.json:
        emit({"run": run, "status": "cancelling" if found is None else found.status})
    elif found is None:
        tell(f"{run} will be ended as soon as a worker that hosts it is there")
    else:
        tell(f"{found.run} {found.status}")


@command.command("retry", epilog=example("callboard runs retry digest/2026-11-21"))
@click.argument("run")
@json_option
@global_options
@pass_session
def retry(session: Session, /, run: str) -> None:
    """Try a run that failed, was cancelled or is partial again: what has a result keeps it."""
    from callboard.agents import runs
    from callboard.runtime.client import Client

    async def work() -> int:
        async with session.bus("runs-retry") as bus:
            client = Client(bus)
            try:
                return await runs.retry(client, run)
            finally:
                await client.close()

    attempt = session.run(work())
    if session.json:
        emit({"run": run, "attempt": attempt})
    else:
        tell(f"{run} begins attempt {attempt}")


def _money(cost: Decimal | None) -> str:
    return "-" if cost is None else f"{cost:f}"


def _json(value: object) -> str:
    import json

    import msgspec

    return json.dumps(msgspec.to_builtins(value), ensure_ascii=False)
