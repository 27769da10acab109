"""The sandbox ``bubblewrap``: a process with namespaces of its own; sees programs, its folder, and nothing else.

Stronger than ``subprocess``: the rest of the disk, other processes and every network are not refused but absent. The
kernel is the machine's own; system calls that only an attacker needs are filtered. The sum of memory and processes is
watched by a warden, which looks up to every 50 ms.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from msgspec import structs

from callboard.agents.errors import SandboxError, SandboxMissingError
from callboard.agents.sandbox import confine, landlock, order, proof, seccomp
from callboard.agents.sandbox.base import Job, Ran
from callboard.agents.sandbox.seccomp import Rules
from callboard.agents.sandbox_settings import SandboxSettings
from callboard.runtime.clock import SYSTEM_CLOCK, Clock

_FILTER_FD = 10
_ITS_OWN_PROCESSES = 2
_USER = "1000"  # inside; outside it stays who it is
_SETFCAP = 31  # the kernel asks for it when root is to be somebody in a namespace; bwrap drops it then
_ADVICE = (
    "allow user namespaces: user.max_user_namespaces must not be 0, kernel.unprivileged_userns_clone (Debian) 1, "
    "kernel.apparmor_restrict_unprivileged_userns (Ubuntu) 0 or a profile for bwrap; in a container, allow them there"
)
_ETC = [
    "alternatives",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "localtime",
    "mime.types",
    "nsswitch.conf",
    "ssl",
    "ca-certificates",
]
_FROZEN = ["acpi", "bus", "driver", "fs", "irq", "mtrr", "scsi", "sys", "sysrq-trigger", "tty"]
_HIDDEN = [
    "kallsyms",
    "kcore",
    "keys",
    "kmsg",
    "kpagecgroup",
    "kpagecount",
    "kpageflags",
    "sched_debug",
    "timer_list",
    "timer_stats",
]


class BubblewrapSandbox:
    """Runs programs in namespaces of their own, by ``bwrap``."""

    name = "bubblewrap"

    def __init__(self, settings: SandboxSettings, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self._settings = settings
        self._clock = clock
        self._is_checked = False

    async def check(self) -> None:
        """Run ``true`` once.

        Raises:
            SandboxMissingError: If ``bwrap`` is not installed, or may not make namespaces.
        """
        if not self._is_checked:
            await proof.prove(self.name, self._run, folders=self._settings.folders, advice=_ADVICE)
            self._is_checked = True

    async def run(self, job: Job) -> Ran:
        """Run a program; see ``Sandbox.run``. Costs about 40 ms besides the program.

        A status of 129 and above counts as a signal: ``bwrap`` tells them no other way.
        """
        await self.check()
        return await self._run(job)

    async def close(self) -> None:
        """Do nothing: each run ends what it started."""

    async def _run(self, job: Job) -> Ran:
        binary = self._binary()
        job = order.accept(job, self._settings)
        if job.limits.network:
            message = "the sandbox bubblewrap has no network to let anybody into; use docker with an operator's network"
            raise SandboxError(message)
        user = confine.user_of(job.folder)
        env = order.environment(job, os.environ, path=order.python_path())
        rules = Rules(has_sockets=True)  # there is no network but its own loopback
        confinement = confine.Confinement(
            argv=[binary, *self._arguments(job.folder, user), "--", *job.argv],
            env=env if "TMPDIR" in job.env else {**env, "TMPDIR": "/tmp"},  # noqa: S108 - its private one
            rlimits=confine.rlimits(job, user),
            filter=seccomp.compile_filter(rules, seccomp.machine()),
            hand_filter_fd=_FILTER_FD,
            user=user,
            capabilities=_root_needs() if user is None else (),
            spare_processes=_ITS_OWN_PROCESSES,
        )
        return _told(await confine.run(job, confinement, clock=self._clock))

    def _binary(self) -> str:
        if sys.platform != "linux" or not seccomp.machine():
            message = "the sandbox bubblewrap needs Linux on x86-64 or 64-bit ARM; use docker"
            raise SandboxMissingError(message)
        found = shutil.which(self._settings.bubblewrap.binary)
        if found is None:
            message = (
                f"the sandbox bubblewrap needs {self._settings.bubblewrap.binary}, which is not here: install the "
                "package bubblewrap, or set agents.sandbox.bubblewrap.binary; nothing is run in a weaker one instead"
            )
            raise SandboxMissingError(message)
        return found

    def _arguments(self, folder: Path, user: tuple[int, int] | None) -> Iterator[str]:
        """Yield how ``bwrap`` builds the world: later ones lie over earlier ones."""
        settings = self._settings.bubblewrap
        yield from ("--unshare-all", "--unshare-user", "--uid", _USER, "--gid", _USER, "--hostname", "sandbox")
        yield from ("--die-with-parent", "--new-session", "--cap-drop", "ALL", "--seccomp", str(_FILTER_FD))
        yield from ("--ro-bind", "/usr", "/usr")
        for name in ("bin", "sbin", "lib", "lib32", "lib64"):
            path = Path("/", name)
            if path.is_symlink():
                yield from ("--symlink", str(path.readlink()), str(path))
            else:
                yield from ("--ro-bind-try", str(path), str(path))
        for name in _ETC:
            yield from ("--ro-bind-try", f"/etc/{name}", f"/etc/{name}")
        yield from ("--proc", "/proc", "--dev", "/dev")
        # Root's own id may write these without any power, and bwrap leaves them open then.
        for name in _FROZEN:
            yield from ("--ro-bind-try", f"/proc/{name}", f"/proc/{name}")
        for name in _HIDDEN:
            if Path("/proc", name).exists():
                yield from ("--ro-bind", "/dev/null", f"/proc/{name}")
        for place in ("/dev/shm", "/tmp"):  # noqa: S108 - its private one
            yield from ("--size", str(settings.tmp_bytes), "--tmpfs", place)
        for each in (*landlock.python(), *map(str, settings.readable)):
            if user is None or _reaches(user, Path(each)):
                yield from ("--ro-bind-try", each, each)
        yield from ("--bind", str(folder), str(folder), "--chdir", str(folder))
        yield from ("--remount-ro", "/dev", "--remount-ro", "/")


def _reaches(user: tuple[int, int], path: Path) -> bool:
    """Tell whether a user may enter every folder on the way; what it may not would keep the whole run from starting."""
    for each in (path, *path.parents):
        if each.exists():
            found = each.stat()
            needed = 0o100 if found.st_uid == user[0] else 0o010 if found.st_gid == user[1] else 0o001
            if not found.st_mode & needed:
                return False
    return True


def _root_needs() -> tuple[int, ...]:
    return (_SETFCAP,) if os.geteuid() == 0 else ()


def _told(ran: Ran) -> Ran:
    """Tell what ``bwrap`` itself says from what the program says."""
    if ran.status == 1 and ran.stderr.startswith(b"bwrap: "):
        message = f"the program could not be started: {ran.stderr.decode(errors='replace').strip()[:500]}"
        raise SandboxError(message)
    status, limit = order.ended(ran.status)
    return structs.replace(ran, status=status, limit=ran.limit or limit)
