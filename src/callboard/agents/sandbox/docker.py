"""The sandbox ``docker``: a container for each run, by aiodocker (extra ``docker``); imported with the first run.

The engine bounds memory, processes and processors of the whole container by cgroups. It must see the same files as this
process: the folder is mounted. Whoever may talk to the engine owns the machine, so the worker's own socket stays out of
every container, and nothing of a container's make can be asked for by a job.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import TYPE_CHECKING, NoReturn, cast
from uuid import uuid4

from callboard.agents.errors import SandboxError, SandboxMissingError
from callboard.agents.sandbox import container, order, proof
from callboard.agents.sandbox.base import Job, Ran
from callboard.agents.sandbox.ending import settled
from callboard.agents.sandbox_settings import SandboxSettings
from callboard.runtime.clock import SYSTEM_CLOCK, Clock

if TYPE_CHECKING:
    from aiodocker import Docker, DockerError
    from aiodocker.containers import DockerContainer
    from aiodocker.stream import Stream
    from aiodocker.types import JSONObject

_ABSENT, _IN_HAND = 404, 409  # gone already; another takes it away just now
_NO_ENGINE = 900  # aiodocker's own number for an engine that cannot be reached
_CHUNK_BYTES = 1 << 16
_STDOUT = 1
_KILLED = 137
_STREAMS_END_S = 5.0


class DockerSandbox:
    """Runs programs in containers."""

    name = "docker"

    def __init__(self, settings: SandboxSettings, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self._settings = settings
        self._clock = clock
        self._is_checked = False
        self._client: Docker | None = None

    async def check(self) -> None:
        """Run ``true`` once, and take away containers whose owner is dead.

        Raises:
            SandboxMissingError: If the extra is not installed, no image is set or is not there, or no engine answers.
        """
        if self._is_checked:
            return
        self._engine()
        await self.reap()
        await proof.prove(self.name, self._run, folders=self._settings.folders, mode=0o777)
        self._is_checked = True

    async def run(self, job: Job) -> Ran:
        """Run a program in a container of its own; see ``Sandbox.run``. Costs some 300 ms besides the program.

        A status of 129 and above counts as a signal: the engine tells them no other way.
        """
        await self.check()
        return await self._run(job)

    async def reap(self) -> int:
        """Take away containers whose owner is dead or whose time is long over; return how many. One list call.

        Raises:
            SandboxMissingError: If no engine answers.
        """
        from aiodocker import DockerError  # noqa: PLC0415 - a quarter of a second

        docker = self._engine()
        now = self._clock.now()
        taken = 0
        try:
            for found in await docker.containers.list(all=1, filters=f'{{"label":["{container.MARK}"]}}'):
                if container.is_left(found["Labels"], now=now):
                    await _remove(found)
                    taken += 1
        except DockerError as error:
            self._refuse(error)
        return taken

    async def close(self) -> None:
        """Close the connection. Runs take their own containers away."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    def _engine(self) -> Docker:
        if self._client is not None:
            return self._client
        try:
            from aiodocker import Docker  # noqa: PLC0415 - a quarter of a second
        except ImportError as error:
            message = "the sandbox docker needs aiodocker: install callboard[docker]"
            raise SandboxMissingError(message) from error
        if not self._settings.docker.image:
            message = (
                "the sandbox docker needs an image: set agents.sandbox.docker.image to one that the engine has; none "
                "is pulled, and nothing is run in a weaker sandbox instead"
            )
            raise SandboxMissingError(message)
        try:
            self._client = Docker(url=self._settings.docker.url)
        except ValueError as error:
            message = f"agents.sandbox.docker.url cannot be used: {error}; write it like unix:///var/run/docker.sock"
            raise SandboxMissingError(message) from error
        return self._client

    async def _run(self, job: Job) -> Ran:
        from aiodocker import DockerError  # noqa: PLC0415 - a quarter of a second

        job = order.accept(job, self._settings)
        settings = self._settings.docker
        docker = self._engine()
        body = container.config(
            job,
            settings,
            user=container.user_of(job.folder, settings),
            env={**order.environment(job, os.environ), "TMPDIR": "/tmp", **job.env},  # noqa: S108 - its private one
            labels=container.labels(job, settings, owner=container.me(), now=self._clock.now()),
        )
        name = f"callboard-{uuid4().hex}"
        began_s = self._clock.monotonic()
        try:
            try:
                # By its name it is found again, also when it is cancelled before the engine has answered.
                made = await docker.containers.create(cast("JSONObject", body), name=name)
                return await self._watch(made, job, began_s)
            finally:
                ending = asyncio.create_task(_remove(docker.containers.container(name)), name="sandbox container")
                await settled(ending)
        except DockerError as error:
            self._refuse(error)

    async def _watch(self, made: DockerContainer, job: Job, began_s: float) -> Ran:
        output = _Output(job.limits.output_bytes)
        limit = ""
        async with made.attach(stdout=True, stderr=True) as streams, made.attach(stdin=True) as stdin:
            transports = [_transport(streams), _transport(stdin)]
            await made.start()
            tasks = [
                asyncio.create_task(_feed(stdin, job.input), name="sandbox input"),
                asyncio.create_task(output.drain(streams), name="sandbox output"),
            ]
            try:
                async with asyncio.timeout(job.limits.time_s):
                    code = int((await made.wait())["StatusCode"])
            except TimeoutError:
                limit, code = "time", _KILLED
                await made.kill()
            finally:
                tasks[0].cancel()
                if limit or not output.is_over:
                    await asyncio.wait(tasks, timeout=_STREAMS_END_S)
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                for transport in transports:
                    if transport is not None:
                        transport.abort()
        state = (await made.show())["State"]
        took_s = self._clock.monotonic() - began_s
        if state["OOMKilled"] and not limit:
            limit = "memory"
        elif code == _KILLED and not limit and took_s >= job.limits.cpu_s:
            limit = "cpu"  # nothing else kills it then; the engine does not tell
        status, named = order.ended(code)
        return Ran(
            status=status,
            stdout=bytes(output.stdout),
            stderr=bytes(output.stderr),
            took_s=took_s,
            limit=limit or named,
            is_cut=output.is_cut,
        )

    def _refuse(self, error: DockerError) -> NoReturn:
        """Raise what an engine's error means for a caller."""
        settings = self._settings.docker
        if error.status == _NO_ENGINE:
            message = (
                f"no Docker engine answers at {settings.url}: start one, or set agents.sandbox.docker.url; nothing "
                f"is run in a weaker sandbox instead ({error.message})"
            )
            raise SandboxMissingError(message) from error
        if error.status == _ABSENT and "image" in error.message.lower():
            message = f"the engine has no image {settings.image}: build or load it there; Callboard pulls none"
            raise SandboxMissingError(message) from error
        message = f"the Docker engine refused: {error.message}"
        raise SandboxError(message) from error


class _Output:
    """The first bytes of both streams; the rest falls, so that the program never waits for us."""

    def __init__(self, most: int) -> None:
        self.stdout = bytearray()
        self.stderr = bytearray()
        self.is_cut = False
        self.is_over = False
        self._most = most

    async def drain(self, streams: Stream) -> None:
        while (message := await streams.read_out()) is not None:
            kept = self.stdout if message.stream == _STDOUT else self.stderr
            room = self._most - len(kept)
            kept += message.data[:room]
            self.is_cut = self.is_cut or len(message.data) > room
        self.is_over = True


async def _feed(stdin: Stream, data: bytes) -> None:
    """Hand the input over and close; the engine closes the program's input with it."""
    # A program may end without reading; aiodocker then finds no connection where it asserts one.
    with contextlib.suppress(ConnectionError, RuntimeError, AssertionError):
        for start in range(0, len(data), _CHUNK_BYTES):
            await stdin.write_in(data[start : start + _CHUNK_BYTES])
    await stdin.close()


def _transport(stream: Stream) -> asyncio.Transport | None:
    """Return the connection of a stream, to cut it at the end of a run.

    aiodocker closes it after the last byte, which a program may never read: it would stay open for good.
    """
    response = stream._resp  # noqa: SLF001 - there is no public way
    return None if response is None or response.connection is None else response.connection.transport


async def _remove(made: DockerContainer) -> None:
    """Kill a container and take it away; also one that is gone already, or never came to be."""
    from aiodocker import DockerError  # noqa: PLC0415 - a quarter of a second

    try:
        await made.delete(force=True, v=True)
    except DockerError as error:
        if error.status not in (_ABSENT, _IN_HAND):
            raise
