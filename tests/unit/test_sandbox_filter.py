"""The filter of system calls, read back by a small machine for its code."""

from __future__ import annotations

import errno
import struct

import pytest

from callboard.agents.sandbox import seccomp
from callboard.agents.sandbox.seccomp import WARDEN_MARK, Rules

ALLOW, REFUSE, KILL = 0x7FFF0000, 0x00050000, 0x80000000
STRICT = Rules(has_sockets=False, protected=(-1, 4711, WARDEN_MARK, -WARDEN_MARK), has_truncate=False)
OPEN = Rules(has_sockets=True)


def decide(rules: Rules, call: str, *arguments: int, arch: str = "x86_64", as_arch: str = "") -> int:
    number = seccomp._NUMBERS[call][list(seccomp._ARCHES).index(arch)]
    values = [each & 0xFFFF_FFFF_FFFF_FFFF for each in (*arguments, 0, 0, 0, 0, 0, 0)][:6]
    data = struct.pack("<IIQ6Q", number, seccomp._ARCHES[as_arch or arch], 0, *values)
    code = list(struct.iter_unpack("<HBBI", seccomp.compile_filter(rules, arch)))
    at, found = 0, 0
    while True:
        operation, yes, no, value = code[at]
        at += 1
        match operation:
            case 0x20:
                found = struct.unpack_from("<I", data, value)[0]
            case 0x54:
                found &= value
            case 0x15:
                at += yes if found == value else no
            case 0x35:
                at += yes if found >= value else no
            case 0x45:
                at += yes if found & value else no
            case _:
                assert operation == 0x06
                return int(value)


@pytest.mark.parametrize("arch", ["x86_64", "aarch64"])
@pytest.mark.parametrize("rules", [STRICT, OPEN])
@pytest.mark.parametrize(
    "call", ["ptrace", "mount", "unshare", "setns", "bpf", "keyctl", "process_vm_readv", "kexec_load"]
)
def test_what_only_an_attacker_needs_is_refused(call: str, rules: Rules, arch: str) -> None:
    assert decide(rules, call, arch=arch) == REFUSE | errno.EPERM


@pytest.mark.parametrize("call", ["clone3", "io_uring_setup", "memfd_create", "shmget"])
def test_what_has_another_way_is_said_to_be_absent(call: str) -> None:
    assert decide(STRICT, call) == REFUSE | errno.ENOSYS


def test_processes_may_be_made_and_namespaces_not() -> None:
    assert decide(STRICT, "clone", 0x01200011) == ALLOW
    for flag in (0x10000000, 0x20000000, 0x00020000, 0x40000000, 0x02000000, 0x04000000, 0x08000000, 0x80):
        assert decide(STRICT, "clone", 0x11 | flag) == REFUSE | errno.EPERM


def test_sockets_are_refused_or_of_few_kinds() -> None:
    assert decide(STRICT, "socket", 1, 1) == REFUSE | errno.EPERM
    assert decide(STRICT, "socketpair", 1, 1 | 0o2000000) == ALLOW
    assert decide(STRICT, "socketpair", 1, 2) == REFUSE | errno.EPERM
    assert [decide(OPEN, "socket", family) == ALLOW for family in (1, 2, 10, 16, 17, 38, 40)] == [True] * 3 + [
        False
    ] * 4


def test_some_processes_get_no_signal() -> None:
    for pid in (-1, 4711, WARDEN_MARK, -WARDEN_MARK):
        assert decide(STRICT, "kill", pid, 9) == REFUSE | errno.EPERM
    for pid in (0, 4712, -4712):
        assert decide(STRICT, "kill", pid, 9) == ALLOW
    assert decide(OPEN, "kill", -1, 9) == ALLOW  # in a namespace of its own


def test_another_kind_of_call_ends_the_program() -> None:
    assert decide(STRICT, "kill", 1, 9, as_arch="aarch64") == KILL


def test_limits_of_others_cannot_be_set() -> None:
    assert decide(STRICT, "prlimit64", 0) == ALLOW
    assert decide(STRICT, "prlimit64", 4711) == REFUSE | errno.EPERM


def test_the_machine_sees_a_filter_without_a_rule() -> None:
    """Negative control."""
    assert decide(OPEN, "truncate") == ALLOW
    assert decide(STRICT, "truncate") == REFUSE | errno.EPERM
