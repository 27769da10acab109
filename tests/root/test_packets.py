"""Bad weather between three servers, rows 22 to 24: packets late, out of order, twice or lost, and a narrow link."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec import structs

from tests.chaos import cluster_ledger
from tests.chaos.cluster_faults import Kind
from tests.root import acts, scene
from tests.root.book import Book
from tests.root.net import Namespaces
from tests.root.switch import Rule
from tests.root.tap import TapSwitch

pytestmark = [
    pytest.mark.root,
    pytest.mark.chaos,
    pytest.mark.timeout(scene.limit_s(300)),
    # the client library leaves behind the dial that it had begun to a server that does not answer in time
    pytest.mark.filterwarnings("ignore:.*StreamWriter.__del__:pytest.PytestUnraisableExceptionWarning"),
]
# nobody is away, so nothing has to outlast a lease
PLAN = structs.replace(scene.PLAN, long_s=2.0, before_s=1.0, after_s=1.0)
LATE = {
    "50 ms ± 10 between servers": Rule(origin=0, target=0, delay_s=0.05, jitter_s=0.01),
    "200 ms ± 50 between servers": Rule(origin=0, target=0, delay_s=0.2, jitter_s=0.05),
    "20 % twice, 10 % out of order": Rule(origin=0, target=0, twice=0.2, late=0.1),
}
LOSSES = (0.01, 0.05, 0.2)


async def test_packets_that_come_late_twice_or_out_of_order(folder: Path, tap_switch: TapSwitch, book: Book) -> None:
    def late(name: str, rule: Rule) -> Kind:
        return acts.weather(name, lambda: tap_switch.between(rule), tap_switch.heal)

    brokers = scene.Placed(folder, tap_switch)
    rows = await scene.keep_ledger(folder, brokers, *(late(name, rule) for name, rule in LATE.items()), plan=PLAN)
    book.add_rows(22, rows, where="TAP switch")
    assert cluster_ledger.problems(rows) == []


async def test_packets_lost_and_a_narrow_link(
    folder: Path, namespaces: Namespaces, lossy: None, narrow: None, book: Book
) -> None:
    def lossy_link(share: float) -> Kind:
        return acts.weather(f"{share:.0%} of packets lost", lambda: namespaces.lose(share), namespaces.heal)

    losses = [lossy_link(share) for share in LOSSES]
    slow = acts.weather("1 Mbit/s from each server", lambda: namespaces.narrow("1mbit"), namespaces.heal)
    rows = await scene.keep_ledger(folder, scene.Placed(folder, namespaces), *losses, slow, plan=PLAN)
    book.add_rows(23, [row for row in rows if row.fault in losses], where="iptables")
    book.add_rows(24, [row for row in rows if row.fault is slow], where="tbf")
    assert cluster_ledger.problems(rows) == []
