"""The table of roles, tried against a server that runs on it; and the proof that the trial notices a wide one."""

from __future__ import annotations

from pathlib import Path

from tests.integration.security_matrix import matrix, report, run, surprises
from tests.support.secured import planned, secured


async def test_each_role_is_refused_what_is_not_its_own_and_told_the_subject(tmp_path: Path) -> None:
    found = await run(tmp_path)
    assert not surprises(found), report(found)


async def test_the_trial_notices_a_user_who_may_too_much(tmp_path: Path) -> None:
    wide = planned(pools=["gpu", "cpu=embed"], hosts=["desk", "back=clerk"], agents=["node"], has_tls=False)
    async with secured(tmp_path, wide, "search", "embed") as servers:
        found = surprises(await matrix(servers))
    assert "worker-gpu: pull from the pool cpu: allowed" in found
    assert "host-desk: write a step of a clerk: allowed" in found
    assert "host-desk: enter a clerk: allowed" in found
    assert "agent-node: register a greeter: allowed" in found
