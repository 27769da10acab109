"""The sandbox ``subprocess``: a process of this machine, fenced by the kernel's own means; nothing has to be installed.

The weakest of the three. Landlock fences files, seccomp refuses sockets, tracing and mounting, rlimits bound each
process, a warden bounds their sum and kills all that came from the program. Processes of the machine are not hidden,
and two looks of the warden are up to 50 ms apart: in between more memory and more processes may be had.
"""

from __future__ import annotations

import os
import shutil
import sys

from callboard.agents.errors import SandboxError, SandboxMissingError
from callboard.agents.sandbox import confine, landlock, order, proof, seccomp
from callboard.agents.sandbox.base import Job, Ran
from callboard.agents.sandbox.seccomp import WARDEN_MARK, Rules
from callboard.agents.sandbox_settings import SandboxSettings
from callboard.runtime.clock import SYSTEM_CLOCK, Clock


class SubprocessSandbox:
    """Runs programs as processes of this machine."""

    name = "subprocess"

    def __init__(self, settings: SandboxSettings, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self._settings = settings
        self._clock = clock
        self._is_checked = False

    async def check(self) -> None:
        """Run ``true`` once.

        Raises:
            SandboxMissingError: If this is no Linux with Landlock and seccomp (5.13 or later, x86-64 or ARM).
        """
        if self._is_checked:
            return
        reason = _missing()
        if reason:
            message = f"the sandbox subprocess does not work here: {reason}; use bubblewrap or docker"
            raise SandboxMissingError(message)
        await proof.prove(self.name, self._run, folders=self._settings.folders)
        self._is_checked = True

    async def run(self, job: Job) -> Ran:
        """Run a program; see ``Sandbox.run``. Costs about 30 ms besides the program."""
        await self.check()
        return await self._run(job)

    async def close(self) -> None:
        """Do nothing: each run ends what it started."""

    async def _run(self, job: Job) -> Ran:
        job = order.accept(job, self._settings)
        if job.limits.network:
            message = "the sandbox subprocess lets nobody into the network; use docker with an operator's network"
            raise SandboxError(message)
        user = confine.user_of(job.folder)
        abi = landlock.version()
        rules = Rules(has_sockets=False, protected=_protected(), has_truncate=abi >= landlock.TRUNCATE_SINCE)
        confinement = confine.Confinement(
            argv=job.argv,
            env=order.environment(job, os.environ, path=order.python_path()),
            rlimits=confine.rlimits(job, user),
            filter=seccomp.compile_filter(rules, seccomp.machine()),
            landlock=landlock.fence(job.folder, self._settings.subprocess.readable, abi=abi),
            user=user,
        )
        return await confine.run(job, confinement, clock=self._clock)


def _missing() -> str:
    if sys.platform != "linux":
        return "it needs Linux"
    if not seccomp.machine():
        return "it knows the system calls of x86-64 and 64-bit ARM only"
    if not landlock.version():
        return "the kernel has no Landlock (5.13 or later, and `landlock` among the modules of the parameter lsm=)"
    return "" if shutil.which("true", path=order.PATH) else f"there is no program `true` in {order.PATH}"


def _protected() -> tuple[int, ...]:
    """Return who gets no signal: this worker, its group, the warden and its group, and everybody at once."""
    return (-1, 1, os.getpid(), -os.getpgrp(), WARDEN_MARK, -WARDEN_MARK)
