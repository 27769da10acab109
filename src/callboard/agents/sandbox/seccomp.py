"""A filter of system calls (seccomp BPF), as bytes: what a program in a sandbox never needs, and an attacker does.

Where a call is refused the program gets EPERM (ENOSYS where libraries then take another way) and goes on.
"""

from __future__ import annotations

import errno
import platform
import struct
from collections.abc import Iterator, Sequence

from msgspec import Struct

WARDEN_MARK = 0x5EC0_57A7  # stands for the warden's process id, which the warden puts in its place
_LOAD, _AND = 0x20, 0x54
_IF_EQUAL, _IF_AT_LEAST, _IF_ANY = 0x15, 0x35, 0x45
_RETURN = 0x06
_ALLOW, _ERRNO, _KILL = 0x7FFF_0000, 0x0005_0000, 0x8000_0000
_ARCHES = {"x86_64": 0xC000_003E, "aarch64": 0xC000_00B7}
_X32 = 0x4000_0000
_NEW_NAMESPACES = 0x7E02_0000 | 0x80  # CLONE_NEW*
_FAMILIES = (1, 2, 10)  # AF_UNIX, AF_INET, AF_INET6; not vsock, which no namespace fences, nor netlink and the like
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C

# name: (x86_64, aarch64), -1 where there is none
_NUMBERS = {
    "acct": (163, 89),
    "add_key": (248, 217),
    "adjtimex": (159, 171),
    "bind": (49, 200),
    "bpf": (321, 280),
    "chroot": (161, 51),
    "clock_adjtime": (305, 266),
    "clock_settime": (227, 112),
    "clone": (56, 220),
    "clone3": (435, 435),
    "connect": (42, 203),
    "delete_module": (176, 106),
    "finit_module": (313, 273),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fsopen": (430, 430),
    "fspick": (433, 433),
    "init_module": (175, 105),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "io_uring_setup": (425, 425),
    "ioctl": (16, 29),
    "ioperm": (173, -1),
    "iopl": (172, -1),
    "kcmp": (312, 272),
    "kexec_file_load": (320, 294),
    "kexec_load": (246, 104),
    "keyctl": (250, 219),
    "kill": (62, 129),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "mount": (165, 40),
    "mount_setattr": (442, 442),
    "move_mount": (429, 429),
    "move_pages": (279, 239),
    "msgget": (68, 186),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "open_tree": (428, 428),
    "perf_event_open": (298, 241),
    "pidfd_getfd": (438, 438),
    "pidfd_send_signal": (424, 424),
    "pivot_root": (155, 41),
    "prlimit64": (302, 261),
    "process_madvise": (440, 440),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "ptrace": (101, 117),
    "quotactl": (179, 60),
    "reboot": (169, 142),
    "request_key": (249, 218),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "semget": (64, 190),
    "setns": (308, 268),
    "settimeofday": (164, 170),
    "shmget": (29, 194),
    "socket": (41, 198),
    "socketpair": (53, 199),
    "swapoff": (168, 225),
    "swapon": (167, 224),
    "tgkill": (234, 131),
    "tkill": (200, 130),
    "truncate": (76, 45),
    "umount2": (166, 39),
    "unshare": (272, 97),
    "userfaultfd": (323, 282),
}
_ALWAYS_REFUSED = [
    "acct",
    "add_key",
    "adjtimex",
    "bpf",
    "chroot",
    "clock_adjtime",
    "clock_settime",
    "delete_module",
    "finit_module",
    "fsconfig",
    "fsmount",
    "fsopen",
    "fspick",
    "init_module",
    "ioperm",
    "iopl",
    "kcmp",
    "kexec_file_load",
    "kexec_load",
    "keyctl",
    "mount",
    "mount_setattr",
    "move_mount",
    "move_pages",
    "name_to_handle_at",
    "open_by_handle_at",
    "open_tree",
    "perf_event_open",
    "pidfd_getfd",
    "pivot_root",
    "process_madvise",
    "process_vm_readv",
    "process_vm_writev",
    "ptrace",
    "quotactl",
    "reboot",
    "request_key",
    "setns",
    "settimeofday",
    "swapoff",
    "swapon",
    "umount2",
    "unshare",
    "userfaultfd",
]
# Their users fall back. clone3's flags lie in memory, where a filter cannot look; io_uring makes calls past the filter;
# the others hold memory that is no process's, so that nobody who adds up processes sees it.
_ABSENT = [
    "clone3",
    "io_uring_enter",
    "io_uring_register",
    "io_uring_setup",
    "memfd_create",
    "memfd_secret",
    "msgget",
    "semget",
    "shmget",
]

_Code = list[tuple[int, int, int, int]]


class Rules(Struct, frozen=True, kw_only=True):
    """What a filter refuses beyond what all refuse (tracing, mounting, namespaces, keys, nameless memory).

    Attributes:
        has_sockets: Let sockets of this machine and the internet be made; right only in a network of its own.
        protected: Processes (and, negative, process groups) that get no signal; WARDEN_MARK for the warden.
        has_truncate: Let files be cut by their path.
    """

    has_sockets: bool
    protected: tuple[int, ...] = ()
    has_truncate: bool = True


def machine() -> str:
    """Return the name of this processor's kind; "" if there is no filter for it."""
    found = platform.machine()
    return found if found in _ARCHES else ""


def compile_filter(rules: Rules, arch: str) -> bytes:
    """Return the filter as the kernel takes it: eight bytes each instruction."""
    column = list(_ARCHES).index(arch)
    code: _Code = [(_LOAD, 0, 0, 4), (_IF_EQUAL, 1, 0, _ARCHES[arch]), (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, 0)]
    if arch == "x86_64":
        code += [(_IF_AT_LEAST, 0, 1, _X32), _refuse()]
    for name, body in _bodies(rules):
        number = _NUMBERS[name][column]
        if number >= 0:
            code += [(_IF_EQUAL, 0, len(body), number), *body]
    code.append(_allow())
    return b"".join(struct.pack("<HBBI", *each) for each in code)


def _bodies(rules: Rules) -> Iterator[tuple[str, _Code]]:
    """Yield for each call what is done about it; each body ends with a decision."""
    for name in _ALWAYS_REFUSED:
        yield name, [_refuse()]
    for name in _ABSENT:
        yield name, [_refuse(errno.ENOSYS)]
    yield "clone", [_argument(0), (_IF_ANY, 0, 1, _NEW_NAMESPACES), _refuse(), _allow()]
    yield "ioctl", _refuse_if(1, (_TIOCSTI, _TIOCLINUX))
    yield "prlimit64", _allow_if(0, (0,))
    if not rules.has_truncate:
        yield "truncate", [_refuse()]
    yield from _socket_bodies(has_sockets=rules.has_sockets)
    if rules.protected:
        for name in ("kill", "tgkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo"):
            yield name, _refuse_if(0, rules.protected)
        yield "tkill", [_refuse()]
        yield "pidfd_send_signal", [_refuse()]


def _socket_bodies(*, has_sockets: bool) -> Iterator[tuple[str, _Code]]:
    if has_sockets:
        yield "socket", _allow_if(0, _FAMILIES)
        return
    for name in ("socket", "connect", "bind"):
        yield name, [_refuse()]
    # A pair of streams is connected to itself for good; a pair of datagram sockets could still send to others.
    yield "socketpair", [_argument(1), (_AND, 0, 0, 0xF), (_IF_EQUAL, 1, 0, 1), _refuse(), _allow()]


def _argument(number: int) -> tuple[int, int, int, int]:
    return (_LOAD, 0, 0, 16 + 8 * number)


def _refuse(code: int = errno.EPERM) -> tuple[int, int, int, int]:
    return (_RETURN, 0, 0, _ERRNO | code)


def _allow() -> tuple[int, int, int, int]:
    return (_RETURN, 0, 0, _ALLOW)


def _refuse_if(argument: int, values: Sequence[int]) -> _Code:
    return [_argument(argument), *_jumps(values), _allow(), _refuse()]


def _allow_if(argument: int, values: Sequence[int]) -> _Code:
    return [_argument(argument), *_jumps(values), _refuse(), _allow()]


def _jumps(values: Sequence[int]) -> _Code:
    """Skip the next decision and take the one behind it if the argument's low half is one of the values."""
    return [(_IF_EQUAL, len(values) - n, 0, value & 0xFFFF_FFFF) for n, value in enumerate(values)]
