"""What one worker process may use up: limits that the kernel holds, and when a process is worn and wants a successor.

A hog is stopped by the kernel and its task counts a crash, as if the process had died of anything else. A process that
has merely grown or worked long is replaced: its successor serves before it stops taking work.
"""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

from msgspec import Struct

from callboard.runtime.clock import SYSTEM_CLOCK, Clock

LOOK_S = 0.5
# CPU seconds between the wish for a successor and the end by the kernel
CPU_MARGIN_S = 5
_STATM_RESIDENT = 1


class Limits(Struct, frozen=True, kw_only=True):
    """What a process may use; 0 is no limit.

    Attributes:
        memory_bytes: Memory of its own, code and shared files aside. Beyond it allocations fail. Linux only.
        cpu_s: CPU time since it was ready, after which it is worn; five seconds of it later the kernel ends it.
        open_files: Files and sockets open at a time.
        tasks: Tasks and turns after which it is worn.
        rss_bytes: Resident memory above which it is worn.
    """

    memory_bytes: int = 0
    cpu_s: float = 0.0
    open_files: int = 0
    tasks: int = 0
    rss_bytes: int = 0

    def why_worn(self, *, tasks: int, rss_bytes: int, cpu_s: float) -> str | None:
        """Return why a process that has used so much wants a successor, or None."""
        if self.tasks and tasks >= self.tasks:
            return f"{tasks} tasks"
        if self.rss_bytes and rss_bytes > self.rss_bytes:
            return f"{rss_bytes >> 20} MiB resident"
        if self.cpu_s and cpu_s >= self.cpu_s:
            return f"{cpu_s:.0f} s of CPU time"
        return None


def hold(limits: Limits) -> None:
    """Have the kernel hold this process, and what it starts, to the limits; never beyond what it was given itself.

    Starting may take as much CPU time as working: `watch` counts anew, so that slow imports do not wear a process.
    """
    if limits.memory_bytes and sys.platform == "linux":
        _lower(resource.RLIMIT_DATA, limits.memory_bytes)
    if limits.open_files:
        _lower(resource.RLIMIT_NOFILE, limits.open_files)
    if limits.cpu_s:
        _lower(resource.RLIMIT_CORE, 0)
        _, most = resource.getrlimit(resource.RLIMIT_CPU)
        resource.setrlimit(resource.RLIMIT_CPU, (_cpu_end(limits, most), most))


async def watch(
    limits: Limits, *, tasks: Callable[[], int], on_worn: Callable[[str], None], clock: Clock = SYSTEM_CLOCK
) -> None:
    """Look twice a second whether this process is worn; say so once and return. CPU time counts from the call on."""
    began_s = time.process_time()
    if limits.cpu_s:
        _, most = resource.getrlimit(resource.RLIMIT_CPU)
        resource.setrlimit(resource.RLIMIT_CPU, (_cpu_end(limits, most),) * 2)
    while True:
        why = limits.why_worn(tasks=tasks(), rss_bytes=rss_bytes(), cpu_s=time.process_time() - began_s)
        if why is not None:
            on_worn(why)
            return
        await clock.sleep(LOOK_S)


def rss_bytes() -> int:
    """Return the resident memory of this process; where there is no ``/proc``, the most that it ever was."""
    try:
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[_STATM_RESIDENT]
    except OSError:
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most << 10
    return int(pages) * resource.getpagesize()


def _cpu_end(limits: Limits, most: int) -> int:
    """Return the CPU time at which the kernel ends this process when its budget begins now."""
    end = math.ceil(time.process_time() + limits.cpu_s) + CPU_MARGIN_S
    return end if most == resource.RLIM_INFINITY else min(end, most)


def _lower(what: int, limit: int) -> None:
    _, most = resource.getrlimit(what)
    if most != resource.RLIM_INFINITY:
        limit = min(limit, most)
    resource.setrlimit(what, (limit, limit))
