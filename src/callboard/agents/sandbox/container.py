"""What a container of the Docker sandbox is made of, and whose it is: plain functions, no engine is asked.

Image, powers, mounts and networks come from the operator's settings. Of a job only program, input, variables, folder,
label and limits are taken, and the limits have been cut to the operator's before.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

from callboard.agents.errors import SandboxError
from callboard.agents.sandbox.base import Job
from callboard.agents.sandbox_settings import DockerSettings

MARK = "callboard.sandbox"
OWNER = "callboard.sandbox.owner"
UNTIL = "callboard.sandbox.until"
LABEL = "callboard.sandbox.label"
_MAX_LABEL = 200
_GROUP_WRITES, _OTHERS_WRITE = 0o020, 0o002


def config(
    job: Job, settings: DockerSettings, *, user: str, env: Mapping[str, str], labels: Mapping[str, str]
) -> dict[str, object]:
    """Return the body of the engine's create call.

    Raises:
        SandboxError: If there is no network that lets through exactly the hosts that the job asks for.
    """
    network = _network(job, settings)
    folder = str(job.folder)
    return {
        "Image": settings.image,
        "Entrypoint": [job.argv[0]],
        "Cmd": list(job.argv[1:]),
        "Env": [f"{name}={value}" for name, value in sorted(env.items())],
        "User": user,
        "WorkingDir": folder,
        "Hostname": "sandbox",
        "Tty": False,
        "OpenStdin": True,
        "StdinOnce": True,
        "AttachStdin": True,
        "AttachStdout": True,
        "AttachStderr": True,
        "NetworkDisabled": network == "none",
        "Healthcheck": {"Test": ["NONE"]},
        "StopSignal": "SIGKILL",
        "Labels": dict(labels),
        "HostConfig": _host(job, settings, network),
    }


def user_of(folder: Path, settings: DockerSettings) -> str:
    """Return whom the program runs as: the folder's owner, or the operator's user where that is root.

    Raises:
        SandboxError: If the folder is root's and the user may not write it.
    """
    found = folder.stat()
    if found.st_uid != 0:
        return f"{found.st_uid}:{found.st_gid or found.st_uid}"
    uid, _, gid = settings.user.partition(":")
    gid = gid or uid
    may_write = found.st_mode & _OTHERS_WRITE or (found.st_mode & _GROUP_WRITES and str(found.st_gid) == gid)
    if not may_write:
        message = (
            f"the folder {folder} belongs to root, as which nothing runs in a container, and user {uid} may not write "
            f"it: `chown {uid}:{gid} {folder}`, or set agents.sandbox.docker.user"
        )
        raise SandboxError(message)
    return f"{uid}:{gid}"


def labels(job: Job, settings: DockerSettings, *, owner: str, now: datetime) -> dict[str, str]:
    """Return what tells a container's owner, and when it is nobody's any more."""
    until = now + timedelta(seconds=job.limits.time_s + settings.grace_s)
    return {MARK: "1", OWNER: owner, UNTIL: until.isoformat(), LABEL: job.label[:_MAX_LABEL]}


def me() -> str:
    """Return who this process is, so that another on the same machine can tell whether it still lives."""
    return f"{_here()}/{os.getpid()}/{_began(os.getpid())}"


def is_left(found: Mapping[str, str], *, now: datetime) -> bool:
    """Tell from its labels whether a container's owner is dead, or its time long over.

    Only an owner on this machine, in this namespace of processes, can be seen to be dead; others have their time.
    """
    where, _, who = found.get(OWNER, "").rpartition("/")
    here, _, pid = where.rpartition("/")
    if here == _here() and pid.isdecimal() and _began(int(pid)) != who:
        return True
    try:
        until = datetime.fromisoformat(found.get(UNTIL, ""))
    except ValueError:
        return False
    return until.tzinfo is not None and now.astimezone(UTC) > until


def _host(job: Job, settings: DockerSettings, network: str) -> dict[str, object]:
    limits, folder = job.limits, str(job.folder)
    return {
        "NetworkMode": network,
        "Privileged": False,
        "ReadonlyRootfs": True,
        "CapAdd": [],
        "CapDrop": ["ALL"],
        "SecurityOpt": ["no-new-privileges"],
        "Memory": limits.memory_bytes,
        "MemorySwap": limits.memory_bytes,
        "PidsLimit": limits.processes,
        "NanoCpus": int(settings.cpus * 1e9),
        "Ulimits": [
            {"Name": "cpu", "Soft": max(1, round(limits.cpu_s)), "Hard": max(1, round(limits.cpu_s)) + 1},
            {"Name": "fsize", "Soft": limits.file_bytes, "Hard": limits.file_bytes},
            {"Name": "nofile", "Soft": limits.open_files, "Hard": limits.open_files},
            {"Name": "core", "Soft": 0, "Hard": 0},
        ],
        "Mounts": [
            {
                "Type": "bind",
                "Source": folder,
                "Target": folder,
                "ReadOnly": False,
                "BindOptions": {"Propagation": "rprivate"},
            }
        ],
        "Tmpfs": {"/tmp": f"rw,nosuid,nodev,size={settings.tmp_bytes},mode=1777"},  # noqa: S108 - its private one
        "ShmSize": settings.tmp_bytes,
        "IpcMode": "private",
        "PidMode": "",
        "UTSMode": "",
        "Devices": [],
        "AutoRemove": False,  # how it ended is read after its end
        "RestartPolicy": {"Name": "no"},
        "LogConfig": {"Type": "none", "Config": {}},  # else a flood of output would fill the engine's disk
        **({"Runtime": settings.runtime} if settings.runtime else {}),
    }


def _network(job: Job, settings: DockerSettings) -> str:
    asked = set(job.limits.network)
    if not asked:
        return "none"
    for name, hosts in settings.networks.items():
        if set(hosts) == asked:
            return name
    message = (
        f"no Docker network lets through exactly {', '.join(sorted(asked))}: make one whose gateway or proxy does, and "
        "name it with its hosts in agents.sandbox.docker.networks; Callboard opens no network itself"
    )
    raise SandboxError(message)


def _here() -> str:
    """Return this boot of this machine and this namespace of processes; "-" where there is no telling."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}/{Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        return "-"


def _began(pid: int) -> str:
    """Return when a process began, in the kernel's ticks; "" if there is none."""
    try:
        line = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return ""
    return line[line.rindex(b")") + 2 :].split()[19].decode()
