"""A switch in user space: it relays frames between TAP devices by a rule for each way, with seeded dice.

``python -m tests.root.switch '<options as JSON>'`` is the switch itself, a process of its own: a harness that is busy
must not slow the cluster down. It opens one TAP device here and one in each namespace whose descriptor it inherits,
says ``ready``, and takes a list of rules from each line it reads. When it ends, all its devices are gone.
"""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import os
import random
import signal
import struct
import sys

import msgspec
from msgspec import Struct

HUB = -1
_TUNSETIFF = 0x400454CA
_IFF_TAP = 0x0002
_IFF_NO_PI = 0x1000
_CLONE_NEWNET = 0x40000000
_FRAME = 1 << 16
_AT_ONCE = 64
_GROUP_BIT = 1
_PR_SET_PDEATHSIG = 1


class Rule(Struct, frozen=True, kw_only=True):
    """What happens to frames from one port to another; ``HUB`` is the harness's own port.

    Attributes:
        delay_s: How long each frame takes; ``jitter_s`` more or less, so that frames overtake each other.
        loss: Share of the frames that is dropped.
        twice: Share of the frames that arrives twice.
        late: Share of the frames that is held back by ``late_s``, behind those that follow.
        is_cut: Nothing passes.
    """

    origin: int
    target: int
    delay_s: float = 0.0
    jitter_s: float = 0.0
    loss: float = 0.0
    twice: float = 0.0
    late: float = 0.0
    late_s: float = 0.005
    is_cut: bool = False


class Options(Struct, frozen=True, kw_only=True):
    """How the switch is to be. ``namespaces`` are inherited descriptors; ``device`` names the harness's TAP."""

    namespaces: tuple[int, ...]
    device: str
    seed: int


class Switch:
    """Relays frames between open TAP devices, by port."""

    def __init__(self, ports: dict[int, int], dice: random.Random) -> None:
        self._ports = ports
        self._dice = dice
        self._seen: dict[bytes, int] = {}
        self._rules: dict[tuple[int, int], Rule] = {}
        self._loop = asyncio.get_running_loop()
        for port, device in ports.items():
            os.set_blocking(device, False)
            self._loop.add_reader(device, self._take, port, device)

    def rule(self, rules: list[Rule]) -> None:
        """Replace all rules."""
        self._rules = {(rule.origin, rule.target): rule for rule in rules}

    def _take(self, origin: int, device: int) -> None:
        for _ in range(_AT_ONCE):
            try:
                frame = os.read(device, _FRAME)
            except BlockingIOError:
                return
            except OSError:
                # the device is not up yet
                return
            target, source = frame[:6], frame[6:12]
            self._seen[source] = origin
            known = None if target[0] & _GROUP_BIT else self._seen.get(target)
            for port in [known] if known is not None else [port for port in self._ports if port != origin]:
                self._relay(frame, origin, port)

    def _relay(self, frame: bytes, origin: int, target: int) -> None:
        rule = self._rules.get((origin, target))
        if rule is None:
            self._put(frame, target)
            return
        dice = self._dice
        if rule.is_cut or dice.random() < rule.loss:
            return
        for _ in range(2 if dice.random() < rule.twice else 1):
            wait_s = rule.delay_s + dice.uniform(-rule.jitter_s, rule.jitter_s)
            if dice.random() < rule.late:
                wait_s += rule.late_s
            if wait_s > 0:
                self._loop.call_later(wait_s, self._put, frame, target)
            else:
                self._put(frame, target)

    def _put(self, frame: bytes, target: int) -> None:
        try:
            os.write(self._ports[target], frame)
        except OSError:
            # a full queue or a device that is down loses frames, as a wire does
            return


def open_tap(name: str) -> int:
    """Open a TAP device in the namespace of this thread; it exists for as long as the descriptor does."""
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH", name.encode(), _IFF_TAP | _IFF_NO_PI))
    return device


def move_into(namespace: int) -> None:
    """Move this thread into a network namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(namespace, _CLONE_NEWNET):
        code = ctypes.get_errno()
        raise OSError(code, f"setns: {os.strerror(code)}")


async def main(options: Options) -> None:
    """Relay until standard input ends."""
    ports = {HUB: open_tap(options.device)}
    for number, namespace in enumerate(options.namespaces):
        move_into(namespace)
        ports[number] = open_tap("eth0")
    switch = Switch(ports, random.Random(options.seed))
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    _say("ready")
    async for line in reader:
        switch.rule(msgspec.json.decode(line, type=list[Rule]))
        _say("done")


def _say(word: str) -> None:
    sys.stdout.write(f"{word}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    asyncio.run(main(msgspec.json.decode(sys.argv[1], type=Options)))
