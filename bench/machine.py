"""Facts of the machine that figures cannot be read without."""

from __future__ import annotations

import os
import platform
import statistics
import sys
import time
from importlib import metadata
from pathlib import Path

FSYNCS = 200
BLOCK_BYTES = 4096


def facts(folder: Path, *, server_version: str, loop: str) -> dict[str, str | int | float]:
    """Return what this machine is; takes the time of 200 fsyncs."""
    synced = sorted(fsync_seconds(folder))
    return {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "cores": os.cpu_count() or 0,
        "cpu": _cpu(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "loop": loop,
        "nats-server": server_version,
        "nats-py": metadata.version("nats-py"),
        "msgspec": metadata.version("msgspec"),
        "file system": _file_system(folder),
        "fsync_p50_ms": round(statistics.median(synced) * 1000, 3),
        "fsync_p99_ms": round(synced[int(len(synced) * 0.99) - 1] * 1000, 3),
        "load_before": round(os.getloadavg()[0], 2),
    }


def fsync_seconds(folder: Path) -> list[float]:
    """Return how long each of 200 appends of 4 KiB took to reach the disk."""
    took = []
    path = folder / "fsync.probe"
    with path.open("wb", buffering=0) as file:
        for _ in range(FSYNCS):
            file.write(os.urandom(BLOCK_BYTES))
            began = time.perf_counter()
            os.fsync(file.fileno())
            took.append(time.perf_counter() - began)
    path.unlink()
    return took


def _cpu() -> str:
    if sys.platform != "linux":
        return platform.processor()
    for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _file_system(folder: Path) -> str:
    if sys.platform != "linux":
        return "unknown"
    best, kind = "", "unknown"
    for line in Path("/proc/mounts").read_text("utf-8").splitlines():
        _, where, found, *_ = line.split()
        if str(folder).startswith(where) and len(where) > len(best):
            best, kind = where, found
    return kind
