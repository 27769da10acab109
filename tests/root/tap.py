"""Servers in namespaces that are joined by a switch in user space: delay, jitter, duplicates, disorder, loss."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Self

import msgspec
from msgspec import structs

from tests.root.net import Nodes
from tests.root.quarters import Refused, enter, need, run
from tests.root.switch import HUB, Options, Rule

_ROOT = Path(__file__).parents[2]
_END_S = 5.0


class TapSwitch(Nodes):
    """Nodes on a switch of our own; the harness has a port on it, too. The same seed draws the same dice."""

    def __init__(self, count: int, *, seed: int = 7) -> None:
        super().__init__(count)
        self._seed = seed
        self._process: subprocess.Popen[str] | None = None
        self._rules: dict[tuple[int, int], Rule] = {}

    def __enter__(self) -> Self:
        try:
            self._start([self.hold() for _ in range(self.count)])
            for number in range(self.count):
                self.inside(number, "ip", "addr", "add", f"{self.address(number)}/24", "dev", "eth0")
                self.inside(number, "ip", "link", "set", "eth0", "up")
            run("ip", "addr", "add", f"{self.net}.254/24", "dev", self.device)
            run("ip", "link", "set", self.device, "up")
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def between(self, rule: Rule | None = None, *, with_hub: bool = False) -> None:
        """Have one rule on every way between nodes; with the harness, too, if asked. None lets everything pass."""
        if rule is None:
            self._apply({})
            return
        ends = [*range(self.count), *([HUB] if with_hub else [])]
        self._apply({(a, b): structs.replace(rule, origin=a, target=b) for a in ends for b in ends if a != b})

    def isolate(self, number: int) -> None:
        """Cut a node off from all others, both ways; its clients stay."""
        self._cut(way for way in self.ways if number in way)

    def deafen(self, number: int) -> None:
        """Let nothing of the other nodes reach one; what it says still arrives."""
        self._cut(way for way in self.ways if way[1] == number)

    def heal(self) -> None:
        """Let everything pass again."""
        self._apply({})

    def close(self) -> None:
        """Remove everything."""
        process, self._process = self._process, None
        if process is not None:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.close()
            try:
                process.wait(_END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            process.stdout.close()
        super().close()

    def _cut(self, ways: Iterable[tuple[int, int]]) -> None:
        self._apply(self._rules | {(a, b): Rule(origin=a, target=b, is_cut=True) for a, b in ways})

    def _apply(self, rules: dict[tuple[int, int], Rule]) -> None:
        self._rules = rules
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(msgspec.json.encode(list(rules.values())).decode() + "\n")
        self._process.stdin.flush()
        self._hear("done")

    def _start(self, namespaces: list[int]) -> None:
        options = Options(namespaces=tuple(namespaces), device=self.device, seed=self._seed)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.root.switch", msgspec.json.encode(options).decode()],
            cwd=_ROOT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(_ROOT / "src"), str(_ROOT)])},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=namespaces,
            text=True,
        )
        self._hear("ready")

    def _hear(self, word: str) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        said = self._process.stdout.readline().strip()
        if said != word:
            rest = self._process.stdout.read() if self._process.poll() is not None or said else ""
            message = f"/dev/net/tun: {(rest or said).strip().splitlines()[-1] if (rest or said) else 'no answer'}"
            raise Refused(message)


def probe_tap() -> str | None:
    """Join two nodes by a switch once; return why that is impossible here, None when it works."""
    try:
        reason = enter()
        if reason is not None:
            return reason
        need("ip", "nsenter")
        with TapSwitch(2) as nodes:
            nodes.between(Rule(origin=0, target=0, twice=0.5))
    except (Refused, OSError) as error:
        return str(error)
    return None
