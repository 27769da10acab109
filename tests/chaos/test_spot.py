"""A machine that is taken away with 25 seconds' notice, in the middle of turns that take longer than that."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from msgspec import structs

from callboard.runtime.actor.ref import ActorRef
from tests.chaos.stage import staged
from tests.chaos.troupe import LONG, SINK, Long
from tests.chaos.turns import TurnVerdict, heard, judge
from tests.support.eventually import eventually

pytestmark = pytest.mark.chaos
NOTICE_S = 25.0
TURNS = 16
STEPS = 40
WITHIN_S = 200.0


async def _run(folder: Path) -> TurnVerdict:
    sent = {f"k{n}": [n, n + TURNS] for n in range(TURNS)}
    async with staged(folder, has_actors=True, shutdown="finish-step", drain_grace_s=15.0) as stage:
        first = await stage.fleet.start()
        for key, (long, behind) in sent.items():
            ref = ActorRef(stage.bus, f"{LONG}/{key}")
            _ = await ref.tell(Long(n=long, order=0, steps=STEPS, step_s=1.0))
            _ = await ref.tell(Long(n=behind, order=1, steps=1, step_s=0.1))
        await eventually(lambda: stage.fleet.count("stepped") >= TURNS, within_s=WITHIN_S, what="steps", every_s=0.1)
        await stage.fleet.start()
        # the platform would kill it then; it has to end by itself before, with status 0
        _ = await stage.fleet.drain(first, within_s=NOTICE_S)
        assert stage.fleet.count("end") < TURNS

        async def is_done() -> bool:
            return sum(len(set(numbers)) for numbers in (await heard(stage.bus, SINK)).values()) == 2 * TURNS

        await eventually(is_done, within_s=WITHIN_S, what="all outputs", every_s=0.5)
        return await judge(stage.bus, stage.fleet, sent)


@pytest.mark.timeout(300)
def test_a_worker_that_is_given_notice_ends_in_time_and_its_turns_go_on_elsewhere(folder: Path) -> None:
    verdict = asyncio.run(_run(folder))
    # stopping turns between two steps is what was asked for
    found = structs.replace(verdict, broken_off=[])
    assert found.problems == [], str(verdict)
    assert verdict.reruns > 0
    # the step under way was finished and recorded, so none was begun a second time
    assert verdict.steps_again == 0, str(verdict)
