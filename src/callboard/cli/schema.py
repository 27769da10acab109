"""``callboard schema``."""

from __future__ import annotations

import click

from callboard.cli.session import example, json_option

KINDS = {
    "record": "TaskRecord",
    "attempt": "AttemptRecord",
    "dead": "DeadLetter",
    "beat": "Beat",
    "progress": "Progress",
    "envelope": "Envelope",
}


@click.command("schema", epilog=example("callboard schema record > record.schema.json"))
@click.argument("kind", type=click.Choice(list(KINDS)), default="record")
@json_option
def command(kind: str) -> None:
    """Print the JSON Schema of what Callboard writes: record, attempt, dead (letter), beat, progress or envelope."""
    import json

    import msgspec

    from callboard.runtime import beat, context, envelope, record

    module = {"beat": beat, "progress": context, "envelope": envelope}.get(kind, record)
    click.echo(json.dumps(msgspec.json.schema(getattr(module, KINDS[kind])), indent=2))
