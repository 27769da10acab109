"""The operator's settings of sandboxes: upper bounds, what may be read, and what a container is made of."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from callboard.runtime.config_field import Bytes, Count, Seconds, Section, refuse

MIB = 1 << 20
SandboxName = Literal["subprocess", "bubblewrap", "docker"]
_USER = r"^[1-9][0-9]{0,8}(:[1-9][0-9]{0,8})?$"
_OPEN_NETWORKS = ("host", "none", "default", "bridge")


def _absolute(path: Path) -> Path:
    if not path.is_absolute():
        refuse("readable", f"must be absolute, and {path} is not")
    return path


AbsolutePath = Annotated[Path, AfterValidator(_absolute)]


class SandboxLimits(Section):
    """What one run may use at most; a caller that asks for more gets this.

    Attributes:
        time_s: Wall time.
        cpu_s: Processor time of all its processes.
        memory_bytes: Memory of all its processes.
        output_bytes: Of each of its two streams.
        file_bytes: Largest file that it may write.
        processes: Processes and threads at a time.
        open_files: Open files of each process.
        network: Hosts that a run may ask for; none by default. Docker only, by ``docker.networks``.
    """

    time_s: Seconds = 300.0
    cpu_s: Seconds = 300.0
    memory_bytes: Bytes = 2048 * MIB
    output_bytes: Bytes = 16 * MIB
    file_bytes: Bytes = 1024 * MIB
    processes: Count = 256
    open_files: Annotated[int, Field(ge=16)] = 1024
    network: tuple[str, ...] = ()


class SubprocessSettings(Section):
    """The sandbox ``subprocess``.

    Attributes:
        readable: What a program may read and execute besides the system's programs and this Python. ``/proc`` is not
            among them: there each process of the machine shows its arguments.
    """

    readable: tuple[AbsolutePath, ...] = ()


class BubblewrapSettings(Section):
    """The sandbox ``bubblewrap``.

    Attributes:
        binary: Name or path of ``bwrap``.
        readable: What a program may read and execute besides ``/usr`` and this Python.
        tmp_bytes: Size of its private ``/tmp``, which is memory.
    """

    binary: str = "bwrap"
    readable: tuple[AbsolutePath, ...] = ()
    tmp_bytes: Bytes = 64 * MIB


class DockerSettings(Section):
    """The sandbox ``docker``. Nothing of this can be asked for by an agent, a tool or a task.

    Attributes:
        url: Where the engine listens.
        image: What containers are made of, best by digest; never pulled. Empty: no image, the sandbox does not work.
        user: ``uid:gid`` where the folder belongs to root; else the folder's owner. Never root.
        cpus: Processors of one container.
        tmp_bytes: Size of its private ``/tmp``, which is memory.
        runtime: Another runtime of the engine, such as ``runsc``; empty for its default.
        networks: Names of Docker networks, and for each the hosts that it lets through. Callboard does not filter: the
            network's own gateway or proxy has to. A run gets a network only if it asks for exactly its hosts.
        grace_s: How long after its time a container may still be there before any worker takes it away.
    """

    url: str = "unix:///var/run/docker.sock"
    image: str = ""
    user: Annotated[str, Field(pattern=_USER)] = "65534:65534"
    cpus: Annotated[float, Field(gt=0, le=1024)] = 1.0
    tmp_bytes: Bytes = 64 * MIB
    runtime: str = ""
    networks: Mapping[str, tuple[str, ...]] = Field(default_factory=dict)
    grace_s: Seconds = 30.0

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name, hosts in self.networks.items():
            if name in _OPEN_NETWORKS or ":" in name:
                refuse(
                    "networks", f"cannot hold {name!r}: it filters nothing; name a network whose way out you control"
                )
            if not hosts:
                refuse("networks", f"must say which hosts {name!r} lets through")
        return self


class SandboxSettings(Section):
    """Sandboxes of this machine.

    Attributes:
        name: The sandbox where nobody asks for another.
        folders: A run's folder must lie in one of these; empty for anywhere but the system's own folders.
        limits: Upper bounds.
    """

    name: SandboxName = "subprocess"
    folders: tuple[AbsolutePath, ...] = ()
    limits: SandboxLimits = SandboxLimits()
    subprocess: SubprocessSettings = SubprocessSettings()
    bubblewrap: BubblewrapSettings = BubblewrapSettings()
    docker: DockerSettings = DockerSettings()
