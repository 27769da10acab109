"""``callboard tenant``."""

from __future__ import annotations

from pathlib import Path

import click

from callboard.cli.nats import folder_option, parse_bytes
from callboard.cli.output import emit, note, table
from callboard.cli.session import Session, example, global_options, json_option, pass_session


@click.group("tenant")
def command() -> None:
    """Make isolated tenants on servers of your own; list, suspend and remove them."""


@command.command("create", epilog=example("callboard tenant create acme --max-bytes 2GiB --max-connections 20"))
@click.argument("name")
@click.option("--max-bytes", help="Room for its streams on disk.  [default: 1GiB]")
@click.option("--max-memory-bytes", help="Room for its streams in memory.  [default: 64MiB]")
@click.option("--max-streams", type=click.IntRange(1), help="Streams it may have.  [default: 24]")
@click.option("--max-connections", type=click.IntRange(1), help="Connections of all its users.  [default: 64]")
@click.option("--weight", type=click.IntRange(1), help="Its part of workers that serve several tenants.  [default: 1]")
@folder_option
@json_option
@global_options
@pass_session
def create(
    session: Session,
    /,
    name: str,
    *,
    max_bytes: str | None,
    max_memory_bytes: str | None,
    max_streams: int | None,
    max_connections: int | None,
    weight: int | None,
    out: Path,
) -> None:
    """Make the account NAME with its limits, users and streams, on the servers that run here.

    Safe to run again: limits that are given are changed, all else stays.
    """
    from msgspec.structs import replace

    from callboard.runtime.host import connector
    from callboard.runtime.security import tenancy
    from callboard.runtime.security.folder import Folder
    from callboard.runtime.security.plan import Tenant

    folder = Folder(out)
    known = {tenant.name: tenant for tenant in folder.plan().tenants}
    given = {
        "max_bytes": parse_bytes(max_bytes) if max_bytes else None,
        "max_memory_bytes": parse_bytes(max_memory_bytes) if max_memory_bytes else None,
        "max_streams": max_streams,
        "max_connections": max_connections,
        "weight": weight,
    }
    limits = {key: value for key, value in given.items() if value is not None}
    tenant = replace(known.get(name, Tenant(name=name)), **limits)
    is_ready = session.run(tenancy.create(folder, tenant, connector=connector))
    if session.json:
        emit({"tenant": tenant, "is_new": name not in known, "is_provisioned": is_ready})
        return
    note(f"tenant {name} {'was there and has these limits now' if name in known else 'was made'}")
    if not is_ready:
        note("no server of it runs here: run this again when one does, to make its streams")
    note(f"its users: {folder.path}/users/{name}/")


@command.command("ls", epilog=example("callboard tenant ls"))
@folder_option
@json_option
@global_options
@pass_session
def ls(session: Session, /, out: Path) -> None:
    """List the tenants and their limits."""
    from callboard.runtime.security.folder import Folder

    tenants = Folder(out).plan().tenants
    if session.json:
        emit(list(tenants))
        return
    rows = [
        (
            tenant.name,
            "suspended" if tenant.is_suspended else "active",
            str(tenant.max_bytes),
            str(tenant.max_streams),
            str(tenant.max_connections),
        )
        for tenant in tenants
    ]
    table(rows, head=("TENANT", "STATE", "BYTES", "STREAMS", "CONNECTIONS"), empty="no tenants")


@command.command("suspend", epilog=example("callboard tenant suspend acme"))
@click.argument("name")
@folder_option
@global_options
@pass_session
def suspend(session: Session, /, name: str, *, out: Path) -> None:
    """Cut all connections of tenant NAME at once and let none in; its streams stay."""
    _suspend(session, name, out, is_suspended=True)
    note(f"tenant {name} is suspended; `callboard tenant resume {name}` lets it in again")


@command.command("resume", epilog=example("callboard tenant resume acme"))
@click.argument("name")
@folder_option
@global_options
@pass_session
def resume(session: Session, /, name: str, *, out: Path) -> None:
    """Let a suspended tenant in again."""
    _suspend(session, name, out, is_suspended=False)
    note(f"tenant {name} may connect again")


@command.command("rm", epilog=example("callboard tenant rm acme --yes"))
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
@folder_option
@global_options
@pass_session
def rm(session: Session, /, name: str, *, yes: bool, out: Path) -> None:
    """Delete tenant NAME: all its streams with what they hold, its account and its keys."""
    from callboard.runtime.host import connector
    from callboard.runtime.security import tenancy
    from callboard.runtime.security.folder import Folder

    if not yes:
        click.confirm(f"Delete everything that tenant {name} has stored?", abort=True)
    streams = session.run(tenancy.remove(Folder(out), name, connector=connector))
    note(f"tenant {name} is gone, with {streams} streams")


def _suspend(session: Session, name: str, out: Path, *, is_suspended: bool) -> None:
    from callboard.runtime.security import tenancy
    from callboard.runtime.security.folder import Folder

    session.run(tenancy.suspend(Folder(out), name, is_suspended=is_suspended))
