"""Servers in network namespaces of their own, on one bridge: partitions, loss and narrow links between real kernels.

The bridge and the harness's address stand in the quarters of the test process (see ``quarters``), so workers and
clients keep their link to a server whose peers are cut off. A namespace is held by a file descriptor alone: it has no
name that could collide, and it is gone with this process.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
from collections.abc import Callable
from itertools import permutations
from typing import Self

from tests.root.quarters import Refused, enter, need, run, unshare

_numbers = itertools.count()


class Nodes:
    """Network namespaces, numbered from 0, in which servers are started."""

    def __init__(self, count: int) -> None:
        own = next(_numbers)
        self.count = count
        # a probe may run beside the real one
        self.net = f"10.145.{own}"
        self.device = f"cb{os.getpid()}.{own}"
        self._held: list[int] = []

    @property
    def ways(self) -> list[tuple[int, int]]:
        """Every ordered pair."""
        return list(permutations(range(self.count), 2))

    def address(self, number: int) -> str:
        """Return a node's address."""
        return f"{self.net}.{number + 1}"

    def launch(self, number: int) -> tuple[str, ...]:
        """Return the words that start a command in a node."""
        return ("nsenter", f"--net={self.path(number)}")

    def path(self, number: int) -> str:
        """Return where a node's namespace is found."""
        return f"/proc/{os.getpid()}/fd/{self._held[number]}"

    def inside(self, number: int, *command: str) -> str:
        """Run a command in a node."""
        return run(*self.launch(number), *command)

    def hold(self) -> int:
        """Make one more namespace, with loopback only; return the descriptor that keeps it."""
        found: list[int | OSError] = []

        def make() -> None:
            try:
                unshare()
                found.append(os.open(f"/proc/self/task/{threading.get_native_id()}/ns/net", os.O_RDONLY | os.O_CLOEXEC))
            except OSError as error:
                found.append(error)

        # a thread of its own, because the one that unshares moves into the new namespace
        thread = threading.Thread(target=make, name="namespace")
        thread.start()
        thread.join()
        match found[0]:
            case OSError() as error:
                raise Refused(str(error)) from error
            case held:
                self._held.append(held)
        self.inside(len(self._held) - 1, "ip", "link", "set", "lo", "up")
        return held

    def close(self) -> None:
        """Let go of the namespaces; they end with the last process inside."""
        while self._held:
            os.close(self._held.pop())


class Namespaces(Nodes):
    """Nodes on a bridge. Cuts and losses are rules of the nodes' own packet filters."""

    def __enter__(self) -> Self:
        try:
            run("ip", "link", "add", self.device, "type", "bridge")
            run("ip", "addr", "add", f"{self.net}.254/24", "dev", self.device)
            run("ip", "link", "set", self.device, "up")
            for number in range(self.count):
                self._join(number)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def cut(self, *ways: tuple[int, int]) -> None:
        """Let nothing more pass from the first to the second of each pair."""
        for origin, target in ways:
            self._filter(target, "-s", self.address(origin))

    def isolate(self, number: int) -> None:
        """Cut a node off from all others, both ways; its clients stay."""
        self.cut(*(way for way in self.ways if number in way))

    def deafen(self, number: int) -> None:
        """Let nothing of the other nodes reach one; what it says still arrives."""
        self.cut(*(way for way in self.ways if way[1] == number))

    def lose(self, share: float) -> None:
        """Drop a share of all packets that reach the nodes, from whomever."""
        for number in range(self.count):
            self._filter(number, "-i", "eth0", "-m", "statistic", "--mode", "random", "--probability", str(share))

    def narrow(self, rate: str) -> None:
        """Let each node send no faster than ``rate``, such as ``1mbit``."""
        for number in range(self.count):
            self.inside(number, *f"tc qdisc add dev eth0 root tbf rate {rate} burst 32k latency 400ms".split())

    def heal(self) -> None:
        """Let everything pass again."""
        for number in range(self.count):
            self.inside(number, "iptables", "-w", "-F")
            # there is none to delete unless the node was narrowed
            with contextlib.suppress(Refused):
                self.inside(number, "tc", "qdisc", "del", "dev", "eth0", "root")

    def close(self) -> None:
        """Remove everything."""
        super().close()
        with contextlib.suppress(Refused):
            run("ip", "link", "del", self.device)

    def _join(self, number: int) -> None:
        self.hold()
        near = f"{self.device}v{number}"
        run("ip", "link", "add", near, "type", "veth", "peer", "name", "eth0", "netns", self.path(number))
        run("ip", "link", "set", near, "master", self.device, "up")
        self.inside(number, "ip", "addr", "add", f"{self.address(number)}/24", "dev", "eth0")
        self.inside(number, "ip", "link", "set", "eth0", "up")

    def _filter(self, number: int, *match: str) -> None:
        self.inside(number, "iptables", "-w", "-A", "INPUT", *match, "-j", "DROP")


def probe_partition() -> str | None:
    """Cut and heal two nodes once; return why that is impossible here, None when it works."""
    return _probe(lambda nodes: nodes.isolate(0), "iptables")


def probe_loss() -> str | None:
    """Lose packets once; return why that is impossible here, None when it works."""
    return _probe(lambda nodes: nodes.lose(0.5), "iptables")


def probe_narrow() -> str | None:
    """Narrow a link once; return why that is impossible here, None when it works."""
    return _probe(lambda nodes: nodes.narrow("1mbit"), "tc")


def _probe(act: Callable[[Namespaces], None], *tools: str) -> str | None:
    try:
        reason = enter()
        if reason is not None:
            return reason
        need("ip", "nsenter", *tools)
        with Namespaces(2) as nodes:
            act(nodes)
            nodes.heal()
    except (Refused, OSError) as error:
        return str(error)
    return None
