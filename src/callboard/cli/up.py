"""``callboard up``."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import click

from callboard.cli.output import emit, note
from callboard.cli.session import Session, example, global_options, json_option, pass_session

if TYPE_CHECKING:
    from callboard.runtime.config import Settings
    from callboard.runtime.server_folder import RunningServer


@click.command("up", epilog=example("callboard up", "callboard up --port 0 --data /tmp/callboard --profile fast"))
@click.option(
    "--data", type=click.Path(path_type=Path, file_okay=False), help="Data folder.  [default: .callboard/data]"
)
@click.option("--port", type=click.IntRange(0, 65_535), help="Port on 127.0.0.1; 0 takes a free one.  [default: 4222]")
@click.option("--http-port", type=click.IntRange(0, 65_535), help="Monitoring port; 0 is off.  [default: 0]")
@click.option(
    "--profile",
    type=click.Choice(["durable", "fast"]),
    help="durable syncs every write; fast may lose two minutes in a power cut.  [default: durable]",
)
@json_option
@global_options
@pass_session
def command(
    session: Session, /, data: Path | None, port: int | None, http_port: int | None, profile: str | None
) -> None:
    """Run a NATS server on this machine until Ctrl-C, and create the streams Callboard needs.

    The data stays in the folder and is there again at the next start. One server runs on a folder at a time. Other
    commands in this directory find it by themselves.
    """
    settings = session.settings(
        server__data_dir=data, server__port=port, server__http_port=http_port, server__profile=profile
    )
    session.run(_up(session, settings))


async def _up(session: Session, /, settings: Settings) -> None:
    import signal

    from callboard.runtime.embedded import EmbeddedServer
    from callboard.runtime.errors import ServerStartError
    from callboard.runtime.host import provision_embedded

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    async with EmbeddedServer(settings.server) as server:
        nats = settings.nats.model_copy(update={"url": server.url})
        await provision_embedded(settings.model_copy(update={"nats": nats}))
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
        _tell(session, server.state, settings)
        ended = asyncio.create_task(server.wait(), name="server-wait")
        stopped = asyncio.create_task(stop.wait(), name="up-stop")
        _ = await asyncio.wait((ended, stopped), return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if not ended.done():
            ended.cancel()
            if not session.json:
                note("stopping the server; what it stored stays")
            return
        message = f"the server ended by itself with status {ended.result()}; see {settings.server.data_dir}/server.log"
        raise ServerStartError(message)


def _tell(session: Session, /, state: RunningServer, settings: Settings) -> None:
    if session.json:
        emit(
            {"event": "ready", "url": state.url, "pid": state.pid, "http_url": state.http_url, "version": state.version}
        )
        return
    click.echo(
        f"NATS {state.version} is ready at {state.url}; data in {settings.server.data_dir}, profile {state.profile}"
    )
    click.echo("Next, in another terminal of this folder:")
    click.echo("  callboard worker start hello.py     serve capabilities (`callboard init` writes an example)")
    click.echo("""  callboard submit hello '"world"' --wait""")
    click.echo("Ctrl-C stops it.")
