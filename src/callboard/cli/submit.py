"""``callboard submit``."""

from __future__ import annotations

import sys
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from callboard.cli.output import SPAN, UNTIL, emit, note, tell
from callboard.cli.session import Session, example, global_options, json_option, pass_session

if TYPE_CHECKING:
    from callboard.runtime.bus.base import Bus
    from callboard.runtime.client import Client, TaskHandle

# beats come once a second
_LISTEN_S = 1.3


@click.command(
    "submit",
    epilog=example(
        """callboard submit search '{"text": "x"}' --wait""",
        "callboard submit search @query.json --id search/2026-11-21/7 --lane high",
        "cat query.json | callboard submit search - --wait --timeout 30s --json",
    ),
)
@click.argument("capability")
@click.argument("payload", metavar="[JSON]", required=False)
@click.option("--wait", is_flag=True, help="Wait for the result and print it.")
@click.option("--timeout", "timeout_s", type=SPAN, help="With --wait: give up waiting after this; the task goes on.")
@click.option("--id", "task_id", help="Idempotency key; a second submit under it gives the first task.")
@click.option("--lane", type=click.Choice(["high", "normal", "low"]), default="normal", show_default=True)
@click.option("--delay", "delay_s", type=SPAN, help="Begin no sooner than after this; the server holds it.")
@click.option("--deadline", type=UNTIL, help="Not wanted after this: a span from now, or a time.")
@click.option("--header", "headers", multiple=True, metavar="NAME:VALUE", help="A further header; may be repeated.")
@click.option("--labels", metavar="K=V,...", help="Run it only on a worker that bears all of these.")
@click.option("--no-warn", is_flag=True, help="Do not look whether anybody offers the capability.")
@json_option
@global_options
@pass_session
def command(session: Session, /, capability: str, payload: str | None, **options: Any) -> None:  # noqa: ANN401 - click's
    """Submit a task for CAPABILITY.

    JSON is the handler's only argument, or an object of its arguments; `@FILE` reads it from a file, `-` from standard
    input. Without it the body is empty. Prints the task's id, or with --wait its result.
    """
    from callboard.runtime import subjects
    from callboard.runtime.errors import TaskFailedError

    subjects.check_name(capability, what="capability")
    wanted = _labels(options.pop("labels"))
    data = read_payload(payload)
    headers = dict(_header(text) for text in options.pop("headers"))
    try:
        session.run(_submit(session, capability, data, headers, labels=wanted, **options))
    except TaskFailedError as error:
        if not session.json:
            raise
        # the record stands on standard output already
        click.get_current_context().exit(1)
        raise AssertionError from error


def read_payload(text: str | None) -> bytes | None:
    """Return the JSON a person gave: itself, ``@file`` or ``-``; None when there is none.

    Raises:
        DecodeError: If it is not one JSON value, with the place.
        InputError: If the file cannot be read.
    """
    import json

    from callboard.runtime.errors import DecodeError, InputError

    if text is None:
        return None
    name = "JSON"
    try:
        if text == "-":
            name, data = "standard input", sys.stdin.buffer.read()
        elif text.startswith("@"):
            name, data = text[1:], Path(text[1:]).read_bytes()
        else:
            data = text.encode(errors="surrogateescape")
    except OSError as error:
        message = f"{name} cannot be read: {error.strerror}"
        raise InputError(message) from error
    try:
        json.loads(data, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        hint = """; a text needs its quotes: '"text"'""" if name == "JSON" else ""
        message = f"{name} is not one JSON value: {error}{hint}"
        raise DecodeError(message) from error
    return data


def _no_constant(name: str) -> object:
    message = f"{name} is not JSON"
    raise ValueError(message)


def _labels(text: str | None) -> dict[str, str]:
    pairs = [pair.partition("=") for pair in (text or "").split(",") if pair.strip()]
    if not all(sign and name.strip() for name, sign, _ in pairs):
        message = f"{text!r} must be written like gpu=yes,zone=a"
        raise click.BadParameter(message, param_hint="--labels")
    return {key.strip(): value.strip() for key, _, value in pairs}


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not name.strip():
        message = f"{text!r} is no header: write NAME:VALUE"
        raise click.BadParameter(message, param_hint="--header")
    return name.strip(), value.strip()


async def _submit(
    session: Session,
    /,
    capability: str,
    data: bytes | None,
    headers: dict[str, str],
    *,
    labels: dict[str, str],
    wait: bool,
    timeout_s: float | None,
    task_id: str | None,
    lane: Any,  # noqa: ANN401 - checked by click
    delay_s: float | None,
    deadline: datetime | None,
    no_warn: bool,
) -> None:
    import msgspec

    from callboard.runtime import roster
    from callboard.runtime.client import Client

    async with session.bus("submit") as bus, roster.listening(bus) as heard:
        client = Client(bus)
        handle = await client.submit(
            capability,
            msgspec.UNSET if data is None else data,
            id=task_id,
            lane=lane,
            deadline=deadline,
            delay_s=delay_s,
            notify=wait,
            headers=headers or None,
            labels=labels,
            timeout_s=session.patience_s,
        )
        if not wait:
            _tell(session, handle)
        elif not session.json:
            note(f"submitted {handle.id}")
        if not no_warn:
            await _warn(bus, heard, handle.capability, patience_s=_LISTEN_S)
        if wait:
            await _wait(session, client, handle, timeout_s=timeout_s if delay_s is None else _later(timeout_s, delay_s))


def _later(timeout_s: float | None, delay_s: float) -> float | None:
    return None if timeout_s is None else timeout_s + timedelta(seconds=delay_s).total_seconds()


def _tell(session: Session, /, handle: TaskHandle) -> None:
    if session.json:
        emit({"task": handle.id, "capability": handle.capability, "seq": handle.seq, "duplicate": handle.is_duplicate})
        return
    tell(handle.id)
    if handle.is_duplicate:
        note("a task with this id was submitted before; nothing new was stored")


async def _warn(bus: Bus, heard: Any, capability: str, *, patience_s: float) -> None:  # noqa: ANN401 - Roster
    """Say on standard error when nobody offers the capability; the task waits then, and nothing is lost."""
    from callboard.runtime import census, subjects
    from callboard.runtime.clock import SYSTEM_CLOCK
    from callboard.runtime.labels import split, told
    from callboard.runtime.near import hint

    is_labelled = bool(split(capability)[1])
    if not is_labelled and await bus.consumer_info(subjects.WORK, subjects.consumer(capability, "normal")) is None:
        meant = hint(capability, await census.near_capabilities(bus, capability))
        note(f"warning: no worker has ever offered {capability!r}; the task waits until one does{meant}")
        return
    give_up_s = SYSTEM_CLOCK.monotonic() + patience_s
    while not heard.serving(capability):
        if SYSTEM_CLOCK.monotonic() > give_up_s:
            note(f"warning: no worker that offers {told(capability)!r} is alive now; the task waits until one is")
            return
        await SYSTEM_CLOCK.sleep(0.02)


async def _wait(session: Session, /, client: Client, handle: TaskHandle, *, timeout_s: float | None) -> None:
    import json

    record = await client.wait_record(handle, timeout_s=timeout_s)
    if session.json:
        emit(record)
    value = await client.value_of(record)
    if session.json:
        return
    tell(value if isinstance(value, str) else json.dumps(value, indent=2, ensure_ascii=False))
