"""``callboard nats``."""

from __future__ import annotations

from pathlib import Path

import click

from callboard.cli.output import emit, note, table
from callboard.cli.session import Session, example, global_options, json_option, pass_session

DEFAULT_FOLDER = Path("nats")
folder_option = click.option(
    "--out",
    "--dir",
    "out",
    type=click.Path(path_type=Path, file_okay=False),
    default=DEFAULT_FOLDER,
    show_default=True,
    help="Folder of the configuration.",
)


@click.group("nats")
def command() -> None:
    """Write configuration for NATS servers of your own: TLS, users, accounts."""


@command.command(
    "config",
    epilog=example(
        "callboard nats config --cluster 3 --tls --out nats",
        "callboard nats config --pool gpu=summarise,embed --host desk=greeter/search",
    ),
)
@click.option("--cluster", type=click.Choice(["1", "3", "5"]), help="Servers.  [default: 1]")
@click.option("--tls/--no-tls", "has_tls", default=None, help="Certificates of a development authority, both ways.")
@folder_option
@click.option("--pool", "pools", multiple=True, metavar="NAME[=CAPABILITY,…]", help="A user for a pool of workers.")
@click.option(
    "--host",
    "hosts",
    multiple=True,
    metavar="NAME[=TYPE,…[/CAPABILITY,…]]",
    help="A user for workers that host actors of these types, and serve these capabilities.",
)
@click.option(
    "--agent", "agents", multiple=True, metavar="NAME[=TYPE,…]", help="A user for agents that no worker hosts."
)
@click.option("--address", "addresses", multiple=True, help="Where a server is reached; repeat for each.  [127.0.0.1]")
@click.option("--port", type=click.IntRange(1, 65_535), help="First client port.  [default: 4222]")
@click.option("--cluster-port", type=click.IntRange(1, 65_535), help="First port between servers.  [default: 6222]")
@click.option(
    "--http-port", type=click.IntRange(1, 65_535), help="First monitoring port, on loopback.  [default: 8222]"
)
@click.option("--max-file-bytes", help="Room for all streams of a server, like 8GiB.")
@click.option("--rotate", is_flag=True, help="Make a new authority, new certificates and new keys for all users.")
@json_option
@global_options
@pass_session
def config(  # noqa: PLR0917 - click hands over by name
    session: Session,
    /,
    cluster: str | None,
    has_tls: bool | None,  # noqa: FBT001 - as above
    out: Path,
    pools: tuple[str, ...],
    hosts: tuple[str, ...],
    agents: tuple[str, ...],
    addresses: tuple[str, ...],
    port: int | None,
    cluster_port: int | None,
    http_port: int | None,
    max_file_bytes: str | None,
    rotate: bool,  # noqa: FBT001 - as above
) -> None:
    """Write configuration, certificates and one user for each role, and have nats-server check it.

    Safe to run again: keys and certificates stay, and so does what an option is not given for. With --rotate they are
    made anew; then reload the servers (callboard nats reload) and hand the new files to the users.
    """
    from msgspec.structs import replace

    from callboard.runtime.security import plan as plans
    from callboard.runtime.security.folder import Folder

    folder = Folder(out)
    before = plans.read(folder.path)
    plan = before or plans.Plan(
        servers=plans.layout(1, hosts=("127.0.0.1",), port=4222, cluster_port=6222, http_port=8222)
    )
    first = plan.servers[0]
    changes: dict[str, object] = {}
    if any(value is not None for value in (cluster, port, cluster_port, http_port)) or addresses:
        changes["servers"] = plans.layout(
            int(cluster or len(plan.servers)),
            hosts=addresses or tuple(dict.fromkeys(server.host for server in plan.servers)),
            port=port or first.port,
            cluster_port=cluster_port or first.cluster_port,
            http_port=http_port or first.http_port,
        )
    if has_tls is not None:
        changes["has_tls"] = has_tls
    if pools:
        changes["pools"] = tuple(plans.unit(text, role="worker") for text in pools)
    if hosts:
        changes["hosts"] = tuple(plans.unit(text, role="host") for text in hosts)
    if agents:
        changes["agents"] = tuple(plans.unit(text, role="agent") for text in agents)
    if max_file_bytes is not None:
        changes["max_file_bytes"] = parse_bytes(max_file_bytes)
    plan = replace(plan, **changes)
    folder.write(plan, rotate=rotate)
    _show(session, folder.path, plan)


@command.command("reload", epilog=example("callboard nats reload --out nats"))
@folder_option
@json_option
@global_options
@pass_session
def reload_(session: Session, /, out: Path) -> None:
    """Have the servers of this machine read their configuration and certificates again, and see that they did."""
    from callboard.runtime.security import servers
    from callboard.runtime.security.folder import Folder

    found = session.run(servers.reload(Folder(out)))
    if session.json:
        emit(found)
        return
    table(
        [(each.server, "reloaded" if each.is_running else "not running here") for each in found],
        head=("SERVER", "STATE"),
        empty="no servers",
    )


@command.command("check", epilog=example("callboard nats check /etc/nats/nats.conf"))
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, dir_okay=False))
@json_option
@global_options
@pass_session
def check(session: Session, /, files: tuple[Path, ...]) -> None:
    """Look whether server configurations are safe; exit 1 when one is not."""
    from callboard.runtime.security.serverconf import problems

    found = {str(file): problems(file.read_text("utf-8")) for file in files}
    if session.json:
        emit(found)
    else:
        for file, texts in found.items():
            for text in texts or ["nothing unsafe found"]:
                click.echo(f"{file}: {text}")
    click.get_current_context().exit(1 if any(found.values()) else 0)


@command.command("roles", epilog=example("callboard nats roles", "callboard nats roles --markdown"))
@click.option("--markdown", is_flag=True, help="Write the table of docs/security.md.")
@json_option
@global_options
@pass_session
def roles(session: Session, /, *, markdown: bool) -> None:
    """Show what each role may publish and hear."""
    from callboard.runtime.security import role

    if session.json:
        emit(role.ROLES)
    elif markdown:
        click.echo(role.markdown())
    else:
        rows = [
            (name, grant.what, str(len(grant.publish)), str(len(grant.subscribe)))
            for name, each in role.ROLES.items()
            for grant in each.grants
        ]
        table(rows, head=("ROLE", "MAY", "PUBLISH", "HEAR"), empty="none")


def parse_bytes(text: str) -> int:
    """Return the number of bytes in ``512MiB``.

    Raises:
        BadParameter: If it is none.
    """
    from pydantic import ByteSize, TypeAdapter, ValidationError

    try:
        return int(TypeAdapter(ByteSize).validate_python(text))
    except ValidationError:
        message = f"{text!r} is no size: write a number of bytes, like 512MiB"
        raise click.BadParameter(message) from None


def _show(session: Session, path: Path, plan: object) -> None:
    from callboard.runtime.security.plan import MAIN, Plan

    assert isinstance(plan, Plan)  # noqa: S101 - for the type checker; imported late
    if session.json:
        emit({"folder": str(path), "plan": plan})
        return
    rows = [(user.name, user.role, f"{path}/users/{MAIN}/{user.name}/settings.yaml") for user in plan.users]
    table(rows, head=("USER", "ROLE", "SETTINGS"), empty="none")
    for server in plan.servers:
        note(f"run: nats-server -c {path}/{server.name}/nats.conf")
    note(f"then: callboard --config {path}/users/{MAIN}/operator/settings.yaml provision")
    note(f"and, to find agents: callboard --config {path}/users/{MAIN}/registry/settings.yaml worker start --registry")
