"""``callboard schema``."""

from __future__ import annotations

from typing import Any

import click

from callboard.cli.session import example, json_option

KINDS = {
    "record": "TaskRecord",
    "attempt": "AttemptRecord",
    "dead": "DeadLetter",
    "beat": "Beat",
    "progress": "Progress",
    "envelope": "Envelope",
    "state": "StateRecord",
}


@click.command("schema", epilog=example("callboard schema record > record.schema.json", "callboard schema hello.py"))
@click.argument("kind", metavar=f"[{'|'.join(KINDS)}|FILE]", default="record")
@json_option
def command(kind: str) -> None:
    """Print the JSON Schema of what Callboard writes, or of the messages and states of the actors in FILE.

    What it writes: record, attempt, dead (letter), beat, progress, envelope, or (actor's) state record. FILE is a .py
    file or a dotted module.
    """
    import json

    click.echo(json.dumps(_own(kind) if kind in KINDS else _actors(kind), indent=2))


def _own(kind: str) -> dict[str, Any]:
    import msgspec

    from callboard.runtime import beat, context, envelope, record
    from callboard.runtime.actor import record as actor_record

    modules = {"beat": beat, "progress": context, "envelope": envelope, "state": actor_record}
    return msgspec.json.schema(getattr(modules.get(kind, record), KINDS[kind]))


def _actors(target: str) -> dict[str, Any]:
    from callboard.runtime.actor.definition import ActorType
    from callboard.runtime.actor.message import Shape
    from callboard.runtime.errors import InputError
    from callboard.runtime.loader import load_parts

    if not (target.endswith(".py") or "." in target or "/" in target):
        message = f"{target!r} is neither a .py file nor a dotted module, nor one of {', '.join(KINDS)}"
        raise InputError(message)
    found = {}
    for actor in load_parts([target]).actors:
        kind = ActorType.of(actor)
        found[kind.name] = {
            "version": kind.version,
            "state": None if actor.State is None else Shape(actor.State).schema(),
            "messages": {
                name: {"read_only": handler.read_only, "doc": handler.doc, "schema": handler.shape.schema()}
                for name, handler in kind.handlers.items()
                if handler.shape is not None
            },
        }
    return found
