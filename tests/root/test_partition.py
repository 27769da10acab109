"""Partitions between three servers in namespaces of their own, rows 19 to 21 of the fault matrix."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos import cluster_ledger
from tests.chaos.cluster_faults import Kind
from tests.root import acts, scene
from tests.root.book import Book
from tests.root.net import Namespaces

pytestmark = [
    pytest.mark.root,
    pytest.mark.chaos,
    pytest.mark.timeout(scene.limit_s(400)),
    # the client library leaves behind the dial that it had begun to a server that is cut off
    pytest.mark.filterwarnings("ignore:.*StreamWriter.__del__:pytest.PytestUnraisableExceptionWarning"),
]
ROWS = {
    19: (
        Kind(name="leader isolated", act=acts.leader_isolated, redelivers=True),
        Kind(name="minority isolated", act=acts.minority_isolated),
        Kind(name="each pair cut", act=acts.each_pair_cut),
    ),
    20: (Kind(name="leader deaf (one way)", act=acts.leader_deaf, redelivers=True),),
    21: (Kind(name="submitter's server isolated", act=acts.own_server_isolated),),
}


async def test_what_was_acknowledged_survives_partitions(folder: Path, namespaces: Namespaces, book: Book) -> None:
    kinds = [kind for kinds in ROWS.values() for kind in kinds]
    rows = await scene.keep_ledger(folder, scene.Placed(folder, namespaces), *kinds)
    for number, own in ROWS.items():
        book.add_rows(number, [row for row in rows if row.fault in own], where="namespaces")
    assert cluster_ledger.problems(rows) == []
