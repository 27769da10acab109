"""A sampling profiler for one thread: a signal a millisecond of CPU time, self time by function, grouped by layer."""

from __future__ import annotations

import signal
import sys
from collections import Counter
from pathlib import Path
from types import FrameType

EVERY_S = 0.001
GROUPS = (
    ("nats/protocol/parser", "client: parser"),
    ("nats/aio/transport", "client: socket"),
    ("nats/", "client: deliver, publish"),
    ("bus/jetstream", "adapter"),
    ("runtime/actor/commit", "turn committer"),
    ("runtime/actor/entry", "turn committer"),
    ("runtime/actor/asks", "asks"),
    ("runtime/actor/reply", "asks"),
    ("runtime/actor/mail", "mailbox"),
    ("runtime/actor/partition", "mailbox"),
    ("runtime/actor/verdict", "mailbox"),
    ("runtime/actor/activation", "activation"),
    ("runtime/actor/record", "activation"),
    ("runtime/actor/", "turn"),
    ("runtime/pool", "pool"),
    ("runtime/lanes", "pool"),
    ("runtime/slot", "slot"),
    ("runtime/codec", "slot"),
    ("runtime/capability", "slot"),
    ("runtime/claim", "claim"),
    ("runtime/subjects", "claim"),
    ("runtime/commit", "commit"),
    ("runtime/settle", "settle"),
    ("runtime/record", "record"),
    ("runtime/clock", "settle"),
    ("callboard/", "callboard: other"),
    ("bench/", "handler and bench"),
    ("asyncio/", "asyncio"),
)


class Sampler:
    """Counts where the main thread is. The signal counts CPU time of the process, so it sleeps when we do.

    A call into C is counted at the Python line that made it, once it returns.
    """

    def __init__(self) -> None:
        self._own: Counter[str] = Counter()
        self._groups: Counter[str] = Counter()
        self._lines: Counter[str] = Counter()
        self._whole: Counter[str] = Counter()
        self._samples = 0

    def start(self) -> None:
        """Begin to sample; only in the main thread."""
        signal.signal(signal.SIGPROF, self._take)
        signal.setitimer(signal.ITIMER_PROF, EVERY_S, EVERY_S)

    def write(self, path: str, *, tasks: int) -> None:
        """Stop, and write the shares as text."""
        signal.setitimer(signal.ITIMER_PROF, 0)
        total = max(1, self._samples)
        lines = [f"{self._samples} samples over {tasks} tasks; self time", ""]
        for title, counter, most in (
            ("by layer", self._groups, 40),
            ("by function", self._own, 45),
            ("by line", self._lines, 45),
            ("by function, with what it calls", self._whole, 90),
        ):
            lines.append(f"{title}:")
            lines += [f"  {count / total:6.1%}  {name}" for name, count in counter.most_common(most)]
            lines.append("")
        Path(path).write_text("\n".join(lines), encoding="utf-8")

    def _take(self, _number: int, frame: FrameType | None) -> None:
        if frame is None:
            return
        self._samples += 1
        code = frame.f_code
        file = code.co_filename
        short = "/".join(Path(file).parts[-2:])
        self._own[f"{short}:{code.co_qualname}" if sys.version_info >= (3, 11) else short] += 1
        self._lines[f"{short}:{frame.f_lineno} {code.co_name}"] += 1
        self._whole.update(_callers(frame))
        self._groups[next((group for part, group in GROUPS if part in file), "other")] += 1


def _callers(frame: FrameType | None) -> set[str]:
    """Return every function on the stack, each once."""
    found = set()
    while frame is not None:
        code = frame.f_code
        found.add(f"{'/'.join(Path(code.co_filename).parts[-2:])}:{code.co_qualname}")
        frame = frame.f_back
    return found
