"""``callboard dev``."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from callboard.cli.output import emit, note
from callboard.cli.session import Session, example, global_options, json_option, pass_session

if TYPE_CHECKING:
    from typing import TextIO

    from callboard.runtime.beat import Beat
    from callboard.runtime.config import Settings
    from callboard.runtime.errors import CallboardError
    from callboard.runtime.loader import Parts, Skipped
    from callboard.runtime.worker import Worker


@click.command("dev", epilog=example("callboard dev hello.py", "callboard dev hello.py --port 0 --profile fast"))
@click.argument("modules", nargs=-1, required=True, metavar="FILE...")
@click.option(
    "--data", type=click.Path(path_type=Path, file_okay=False), help="Data folder.  [default: .callboard/data]"
)
@click.option("--port", type=click.IntRange(0, 65_535), help="Port on 127.0.0.1; 0 takes a free one.  [default: 4222]")
@click.option(
    "--profile",
    type=click.Choice(["durable", "fast"]),
    help="durable syncs every write; fast may lose two minutes in a power cut.  [default: durable]",
)
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]))
@json_option
@global_options
@pass_session
def command(
    session: Session,
    /,
    modules: tuple[str, ...],
    *,
    data: Path | None,
    port: int | None,
    profile: str | None,
    log_level: str | None,
) -> None:
    """Serve the actors and capabilities of each FILE, and their new code as soon as it is saved, until Ctrl-C.

    Runs a NATS server here, unless --nats names one or one runs on this folder already; then it says so, and serves
    there too. What is stored stays: an actor goes on where it was. A turn that runs while its file changes ends with
    the code it began with; a file that cannot be imported is reported, and the code before it goes on. FILE may be a
    folder: each of its .py files is served, and new ones are from when they are saved; one that cannot be used is
    reported and left out.
    """
    from callboard.runtime import host

    settings = session.settings(
        server__data_dir=data, server__port=port, server__profile=profile, log__level=log_level or "warning"
    )
    host.configure_logs(settings)
    out = sys.stdout
    if session.json:
        # what modules and handlers print must not stand between the events
        sys.stdout = sys.stderr
    host.run_loop(_dev(session, settings, modules, out))
    host.leave(0)


async def _dev(session: Session, /, settings: Settings, modules: tuple[str, ...], out: TextIO) -> None:
    from callboard.runtime.development import Development

    others = await _joined(session, settings, modules)
    async with _server(settings) as (found, ended):
        teller = _Teller(session, url=found.nats.url, out=out, source=modules[0], others=others)
        await _until(Development(found, modules, told=teller).run(), ended, settings=found)
        if not session.json:
            note("stopped; what was stored stays, and `callboard dev` goes on with it")


async def _joined(session: Session, /, settings: Settings, modules: tuple[str, ...]) -> list[Beat]:
    """Say so when a server runs on this folder already, and return the workers that serve there. Takes 1.3 s then."""
    from callboard.runtime import host, roster
    from callboard.runtime.server_folder import running

    here = running(settings.server.data_dir)
    if session.nats or here is None or here.url != settings.nats.url:
        return []
    note(
        f"a server runs on this folder already, at {here.url} (process {here.owner_pid} started it): this `dev` starts "
        "none, serves there too, and stops when that one does; --port and --profile are not used. For a server of its "
        f"own: `callboard dev {' '.join(modules)} --data FOLDER --port 0`, then --nats with its address elsewhere"
    )
    bus = await host.connector(settings)("dev-look")
    try:
        return await roster.live_workers(bus)
    finally:
        await bus.close()


@asynccontextmanager
async def _server(settings: Settings) -> AsyncIterator[tuple[Settings, asyncio.Task[int] | None]]:
    """Give settings that lead to a server with streams, and the end of that server if it is ours."""
    from callboard.runtime.embedded import EmbeddedServer
    from callboard.runtime.host import provision_embedded

    if settings.origins()["nats.url"] != "default":
        yield settings, None
        return
    async with EmbeddedServer(settings.server) as server:
        found = settings.model_copy(update={"nats": settings.nats.model_copy(update={"url": server.url})})
        await provision_embedded(found)
        ended = asyncio.create_task(server.wait(), name="server-wait")
        try:
            yield found, ended
        finally:
            ended.cancel()


async def _until(work: Coroutine[Any, Any, None], ended: asyncio.Task[int] | None, *, settings: Settings) -> None:
    """Run ``work`` to its end, or until the server ends by itself."""
    from callboard.runtime.errors import ServerStartError

    task = asyncio.create_task(work, name="development")
    await asyncio.wait([task] if ended is None else [task, ended], return_when=asyncio.FIRST_COMPLETED)
    if not task.done() and ended is not None:
        task.cancel()
        await asyncio.wait([task])
        message = f"the server ended by itself with status {ended.result()}; see {settings.server.data_dir}/server.log"
        raise ServerStartError(message)
    await task


class _Teller:
    """Says what is served, and what became of each change. Implements ``development.Told``."""

    def __init__(self, session: Session, /, *, url: str, out: TextIO, source: str, others: Sequence[Beat]) -> None:
        self._session = session
        self._others = others
        self._url = url
        self._out = out
        self._source = source

    def ready(self, worker: Worker, parts: Parts) -> None:
        from callboard.cli.worker import serving

        for line in _shared(parts, self._others):
            note(line)
        self._others = ()
        if self._session.json:
            actors = sorted(actor.actor_name for actor in parts.actors)
            served = {"actors": actors, "capabilities": sorted(worker.pools)}
            emit({"event": "ready", "url": self._url, "worker": worker.id, **served}, file=self._out)
            return
        click.echo(f"{self._source} is served at {self._url}: {serving(worker, parts)}")
        lines = _tries(parts)
        click.echo("Try in another terminal of this folder:" if lines else "")
        for line in lines:
            click.echo(f"  {line}")
        click.echo("Save the file and the next message is handled by the new code. Ctrl-C stops it.")

    def reloaded(self, files: list[Path]) -> None:
        if self._session.json:
            emit({"event": "reloaded", "files": [str(file) for file in files]}, file=self._out)
        else:
            click.echo(f"{_names(files)} changed: the new code is used from the next message on")

    def failed(self, files: list[Path], error: CallboardError) -> None:
        if self._session.json:
            said = {"code": error.code, "message": str(error)}
            emit({"event": "failed", "files": [str(file) for file in files], **said}, file=self._out)
        else:
            note(f"{_names(files)} changed and cannot be used, the code before it goes on:\n{error}")

    def skipped(self, part: Skipped) -> None:
        if self._session.json:
            said = {"code": part.error.code, "message": str(part.error)}
            emit({"event": "skipped", "name": part.name, **said}, file=self._out)
        else:
            note(f"{part.name} cannot be used and is left out:\n{part.error}")


def _shared(parts: Parts, others: Sequence[Beat]) -> list[str]:
    """Return a line for each other worker that serves something that we serve."""
    actors = {actor.actor_name for actor in parts.actors}
    capabilities = {capability.name for capability in parts.capabilities}
    lines = []
    for beat in others:
        both = actors & {load.kind for load in beat.actors} | capabilities & {load.name for load in beat.capabilities}
        if both:
            lines.append(
                f"{', '.join(sorted(both))}: also served by worker {beat.worker} (process {beat.pid}); the two share "
                "the work, each with the code that it loaded, and when one stops the other takes what it leaves"
            )
    return lines


def _names(files: list[Path]) -> str:
    return ", ".join(file.name for file in files)


def _tries(parts: Parts) -> list[str]:
    """Return commands that work as they stand: an ask for each actor type, a start for each flow, or a submit."""
    import shlex

    from callboard.agents.run_record import PREFIX
    from callboard.runtime.actor.definition import ActorType
    from callboard.runtime.sample import sample_of

    lines: list[str] = []
    for actor in parts.actors:
        for name, handler in list(ActorType.of(actor).handlers.items())[:1]:
            body = sample_of(handler.shape.schema()) if handler.shape is not None else {}
            flow = actor.actor_name.removeprefix(PREFIX)
            if flow != actor.actor_name:
                lines.append(f"callboard runs start {flow} {_quoted(body)} --wait")
                continue
            lines.append(f"callboard ask {actor.actor_name}/ann {shlex.quote(name)} {_quoted(body)}")
    if not lines:
        lines = [
            f"callboard submit {capability.name} {_quoted(sample_of(capability.schema()))} --wait"
            for capability in parts.capabilities[:1]
        ]
    return lines


def _quoted(value: object) -> str:
    import json
    import shlex

    return shlex.quote(json.dumps(value, ensure_ascii=False))
