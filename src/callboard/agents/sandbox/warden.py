"""The warden: a small process between a worker and what runs in a sandbox. It fences, watches, leaves nobody behind.

It is started as a script of its own, without site packages, so it imports the standard library only: arguments are the
descriptors of the order (JSON), of the control pipe (its end means: stop) and of the report (JSON). It is the subreaper
of all that it starts, so what a program puts into the background comes back to it and is killed with the rest.
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import json
import os
import resource
import select
import signal
import stat
import struct
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_CAPBSET_DROP = 1, 22, 24
_PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 36, 38
_PR_CAPBSET_READ = 23
_SECCOMP_MODE_FILTER = 2
_CAPABILITY_VERSION, _MAX_CAPABILITIES = 0x2008_0522, 64
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
_LANDLOCK_PATH_BENEATH = 1
_FILE_RIGHTS = 1 << 0 | 1 << 1 | 1 << 2 | 1 << 14 | 1 << 15  # execute, write, read, truncate, device ioctl
_NICE = 5
_FIRST_LOOK_S, _LAST_LOOK_S = 0.01, 0.05
_GIVE_UP_S = 20.0
_NO_GROUP = (
    "root's processes can be bounded by a cgroup with the controller pids only, and none can be made here: run the "
    "worker as an ordinary user, give the folder to one, or let cgroups be written"
)
_STDERR_FD = 2
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_LIBC = ctypes.CDLL(None, use_errno=True)


def main(arguments: Sequence[str]) -> None:
    """Run what the order says; write the report."""
    order_fd, control_fd, report_fd = map(int, arguments)
    for fd in (order_fd, control_fd, report_fd):
        os.set_inheritable(fd, False)  # noqa: FBT003 - takes no keyword
    with open(order_fd, "rb") as file:  # noqa: PTH123 - a descriptor, not a path
        order = json.load(file)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    watch = Watch(order["limits"], control_fd)
    group = _make_group(int(order["limits"]["processes"]))
    if not group and os.geteuid() == 0 and order["user"] is None:
        # Root is exempt from the kernel's other bound, and a watch alone is too slow for a fork bomb.
        child, failure = 0, _NO_GROUP
    else:
        child, failure = _start(order, group)
    _let_go_of_streams()
    report: dict[str, Any] = {"error": failure}
    if not failure:
        watch.until_the_end(child)
    left = watch.kill_all(child) if child else 0
    _remove_group(group)
    report |= {"status": watch.status, "limit": watch.limit, "left": left}
    os.write(report_fd, json.dumps(report).encode())


class Watch:
    """Looks at what runs until it ends, its worker is gone or it goes beyond a limit.

    Attributes:
        status: Exit status of the program; minus a signal's number.
        limit: The limit that it went beyond.
    """

    def __init__(self, limits: Mapping[str, float], control_fd: int) -> None:
        self.status = -int(signal.SIGKILL)
        self.limit = ""
        self._limits = limits
        self._control_fd = control_fd
        self._deadline_s = time.monotonic() + limits["time_s"]
        self._reaped_cpu_s = 0.0
        self._woken_fd, wake_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake_fd, warn_on_full_buffer=False)

    def until_the_end(self, child: int) -> None:
        """Watch; what it costs is a look at each process, twenty times a second."""
        poll = select.poll()
        poll.register(self._control_fd, select.POLLIN)
        poll.register(self._woken_fd, select.POLLIN)
        pause_s = _FIRST_LOOK_S
        while not self._reap(child):
            self.limit = self._beyond()
            if self.limit:
                return
            ready = {fd for fd, _ in poll.poll(pause_s * 1000)}
            if self._control_fd in ready:
                self.limit = "cancelled"
                return
            if self._woken_fd in ready:
                os.read(self._woken_fd, 4096)
            pause_s = min(2 * pause_s, _LAST_LOOK_S)
        if self.status == -signal.SIGXCPU:
            self.limit = "cpu"
        elif self.status == -signal.SIGXFSZ:
            self.limit = "files"
        elif self.status == -signal.SIGKILL and self._reaped_cpu_s >= self._limits["cpu_s"]:
            self.limit = "cpu"

    def kill_all(self, child: int) -> int:
        """Kill every process that came from the program; return how many could not be killed.

        Stopping comes first: what is stopped cannot fork while the others are looked for.
        """
        give_up_s = time.monotonic() + _GIVE_UP_S
        while True:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child, signal.SIGKILL)
            stopped: set[int] = set()
            while new := {found.pid for found in _descendants()} - stopped:
                _signal(new, signal.SIGSTOP)
                stopped |= new
            _signal(stopped, signal.SIGKILL)
            self._reap(child)
            if not stopped:
                return 0
            if time.monotonic() > give_up_s:
                return len(stopped)
            select.select([self._woken_fd], [], [], _FIRST_LOOK_S)
            with contextlib.suppress(BlockingIOError):
                os.read(self._woken_fd, 4096)

    def _reap(self, child: int) -> bool:
        """Take in what has ended; tell whether the program itself has."""
        is_over = False
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return is_over
            if pid == 0:
                return is_over
            self._reaped_cpu_s += usage.ru_utime + usage.ru_stime
            if pid == child:
                is_over = True
                if not self.limit:
                    self.status = os.waitstatus_to_exitcode(status)

    def _beyond(self) -> str:
        if time.monotonic() >= self._deadline_s:
            return "time"
        found = list(_descendants())
        if sum(each.threads for each in found) > self._limits["processes"]:
            return "processes"
        if self._reaped_cpu_s + sum(each.cpu_s for each in found) > self._limits["cpu_s"]:
            return "cpu"
        most = self._limits["memory_bytes"]
        # The first sum counts shared pages for each process; the exact one costs more, so it comes second.
        if sum(each.resident_bytes for each in found) > most and sum(each.own_bytes() for each in found) > most:
            return "memory"
        return ""


class Seen:
    """One process, as /proc shows it."""

    __slots__ = ("cpu_s", "parent", "pid", "resident_bytes", "threads")

    def __init__(self, pid: int, line: bytes) -> None:
        fields = line[line.rindex(b")") + 2 :].split()
        self.pid = pid
        self.parent = int(fields[1])
        self.cpu_s = sum(map(int, fields[11:15])) / _TICKS
        self.threads = int(fields[17])
        self.resident_bytes = int(fields[21]) * _PAGE

    def own_bytes(self) -> int:
        """Return its memory, of shared pages its share."""
        with contextlib.suppress(OSError, ValueError), open(f"/proc/{self.pid}/smaps_rollup", "rb") as file:  # noqa: PTH123
            for line in file:
                if line.startswith(b"Pss:"):
                    return int(line.split()[1]) * 1024
        return self.resident_bytes


def _descendants() -> Iterator[Seen]:
    waiting = [os.getpid()]
    while waiting:
        for pid in _children(waiting.pop()):
            with contextlib.suppress(OSError), open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123
                line = file.read()
                yield Seen(pid, line)
                waiting.append(pid)


def _children(parent: int) -> list[int]:
    found: list[int] = []
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{parent}/task"):  # noqa: PTH208
            with contextlib.suppress(OSError), open(f"/proc/{parent}/task/{thread}/children", "rb") as file:  # noqa: PTH123
                found += map(int, file.read().split())
    return found


def _signal(pids: set[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


# --- a group of processes whose number the kernel bounds (cgroup); for root alone


def _make_group(processes: int) -> str:
    """Return the folder of a new group below this process's own, or beside it; "" where none can be made."""
    for place in _places():
        group = f"{place}/callboard-sandbox-{os.getpid()}"
        with contextlib.suppress(OSError):
            os.mkdir(group)  # noqa: PTH102
            try:
                _write(f"{group}/pids.max", str(processes))
            except OSError:
                _remove_group(group)  # a group without this bound
            else:
                return group
    return ""


def _places() -> Iterator[str]:
    """Yield where a group may be made: of the first version's hierarchy of pids, else of the second version's one."""
    with contextlib.suppress(OSError), open("/proc/self/cgroup", encoding="ascii") as file:  # noqa: PTH123
        for line in file:
            _, kinds, path = line.rstrip("\n").split(":", 2)
            if "pids" in kinds.split(","):
                yield f"/sys/fs/cgroup/pids{path.rstrip('/')}"
            elif not kinds:
                while path:
                    yield f"/sys/fs/cgroup{path.rstrip('/')}"
                    path = path.rpartition("/")[0]


def _remove_group(group: str) -> None:
    give_up_s = time.monotonic() + _GIVE_UP_S
    while group:
        try:
            os.rmdir(group)  # noqa: PTH106
        except FileNotFoundError:
            return
        except OSError:
            if time.monotonic() > give_up_s:
                return
            select.select([], [], [], _FIRST_LOOK_S)  # the dead leave a moment later
        else:
            return


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="ascii") as file:  # noqa: PTH123
        file.write(text)


# --- between fork and exec


def _start(order: Mapping[str, Any], group: str) -> tuple[int, str]:
    """Fork and fence; return the process and what went wrong, once the program runs or could not."""
    failed_fd, tell_fd = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        try:
            _become(order, group, tell_fd)
        except BaseException as error:  # noqa: BLE001 - the fork of a process must never return
            os.write(tell_fd, f"{order['argv'][0]}: {error}".encode("utf-8", "replace")[:4000])
        os._exit(127)
    os.close(tell_fd)
    with open(failed_fd, "rb") as file:  # noqa: PTH123
        return child, file.read().decode()


def _let_go_of_streams() -> None:
    """Close the program's streams here, so that they end when it does."""
    null = os.open(os.devnull, os.O_RDWR)
    for fd in range(3):
        os.dup2(null, fd)


def _become(order: Mapping[str, Any], group: str, tell_fd: int) -> NoReturn:
    os.setsid()
    if group:
        _write(f"{group}/cgroup.procs", "0")
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    os.nice(_NICE)
    filter_bytes = _filter(order)
    handed_fd = order["hand_filter_fd"]
    if handed_fd:
        _hand_over(filter_bytes, handed_fd, tell_fd)
    _close_all_but({tell_fd, handed_fd})
    for name, value in order["rlimits"].items():
        _limit(getattr(resource, name), value)
    _give_up_powers(order["user"], order["capabilities"])
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # changing the user clears it
    os.chdir(order["folder"])
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    if order["landlock"]:
        _fence(order["landlock"])
    if not handed_fd:
        _apply(filter_bytes)
    os.execvpe(order["argv"][0], order["argv"], order["env"])  # noqa: S606 - what a sandbox is for


def _filter(order: Mapping[str, Any]) -> bytes:
    """Return the filter with this warden's process id in the place of its mark."""
    code = base64.b64decode(order["filter"])
    mark, warden = order["warden_mark"], os.getppid()
    found = bytearray()
    for operation, yes, no, value in struct.iter_unpack("<HBBI", code):
        signs = {mark: warden, -mark & 0xFFFF_FFFF: -warden & 0xFFFF_FFFF}
        found += struct.pack("<HBBI", operation, yes, no, signs.get(value, value))
    return bytes(found)


def _hand_over(filter_bytes: bytes, fd: int, tell_fd: int) -> None:
    if fd == tell_fd:
        message = f"descriptor {fd} is in use"
        raise OSError(message)
    read_fd, write_fd = os.pipe()
    os.write(write_fd, filter_bytes)  # smaller than a pipe's buffer
    os.close(write_fd)
    os.dup2(read_fd, fd, inheritable=True)


def _close_all_but(kept: set[int]) -> None:
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208
        fd = int(name)
        if fd > _STDERR_FD and fd not in kept:
            with contextlib.suppress(OSError):
                os.close(fd)


def _limit(kind: int, value: int) -> None:
    _, most = resource.getrlimit(kind)
    bound = sys.maxsize if most == resource.RLIM_INFINITY else most
    # The processor limit warns first (SIGXCPU) and kills a second later, should the program not care.
    spare = 1 if kind == resource.RLIMIT_CPU else 0
    resource.setrlimit(kind, (min(value, bound), min(value + spare, bound)))


def _give_up_powers(user: Sequence[int] | None, kept: Sequence[int]) -> None:
    """Become the user, if one is named, and keep no capability nor a way to one: also root's program has none."""
    for number in set(range(_MAX_CAPABILITIES)) - set(kept):
        if _LIBC.prctl(_PR_CAPBSET_READ, number, 0, 0, 0) == 1:
            _prctl(_PR_CAPBSET_DROP, number)
    if user is not None:
        os.setgroups([])
        os.setresgid(user[1], user[1], user[1])
        os.setresuid(user[0], user[0], user[0])
    header = struct.pack("<Ii", _CAPABILITY_VERSION, 0)
    mask = sum(1 << number for number in kept)
    low, high = mask & 0xFFFF_FFFF, mask >> 32
    if _LIBC.capset(header, struct.pack("<6I", low, low, 0, high, high, 0)) != 0:
        raise OSError(ctypes.get_errno(), "capset")


def _fence(landlock: Mapping[str, Any]) -> None:
    """Let the program reach nothing but the listed files (Landlock)."""
    attributes = struct.pack("<QQQ", landlock["rights"], landlock["net"], landlock["scoped"])[: landlock["size"]]
    ruleset = _syscall(_LANDLOCK_CREATE, attributes, ctypes.c_size_t(len(attributes)), 0)
    for path, rights in landlock["rules"]:
        try:
            fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue  # what is not there cannot be reached
        mask = rights if stat.S_ISDIR(os.fstat(fd).st_mode) else rights & _FILE_RIGHTS
        rule = struct.pack("<Qi", mask & landlock["rights"], fd)
        _syscall(_LANDLOCK_ADD, ruleset, _LANDLOCK_PATH_BENEATH, rule, 0)
        os.close(fd)
    _syscall(_LANDLOCK_RESTRICT, ruleset, 0)
    os.close(ruleset)


def _apply(filter_bytes: bytes) -> None:
    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_char_p))

    program = Program(len(filter_bytes) // 8, filter_bytes)
    _prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program))


def _prctl(*arguments: Any) -> None:  # noqa: ANN401 - numbers and pointers
    padded = [*arguments, 0, 0, 0, 0][:5]
    if _LIBC.prctl(*(ctypes.c_ulong(each) if isinstance(each, int) else each for each in padded)) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"prctl {arguments[0]}: {os.strerror(code)}")


def _syscall(number: int, *arguments: Any) -> int:  # noqa: ANN401 - numbers and pointers
    found = int(_LIBC.syscall(ctypes.c_long(number), *arguments))
    if found < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"system call {number}: {os.strerror(code)}")
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
