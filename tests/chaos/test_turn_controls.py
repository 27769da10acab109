"""Take one protection of actors away, and the judge must see it; with the protection in place the same scene is clean.

Real processes: hosts are killed and stopped, and servers go away. What each protection is stands in ``breakage``.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from callboard.runtime.actor.ref import ActorRef
from tests.chaos.gate import Gate
from tests.chaos.stage import Stage, staged
from tests.chaos.troupe import LONG, SINK, Long, task_of
from tests.chaos.turns import TurnVerdict, heard, judge
from tests.support.eventually import eventually

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(300)]
WITHIN_S = 60.0
# longer than the turns of one host are apart, on a busy machine too
STEP_S = 3.0
OUTAGE_S = 3.5
Sent = dict[str, list[int]]


async def post(stage: Stage, sent: Sent, *, keys: int, steps: int = 1, step_s: float = 0.05) -> list[int]:
    """Send ``keys`` actors one more mail each; return the numbers."""
    numbers = []
    for number in range(keys):
        own = sent.setdefault(f"k{number}", [])
        mail = Long(n=sum(len(each) for each in sent.values()), order=len(own), steps=steps, step_s=step_s)
        _ = await ActorRef(stage.bus, f"{LONG}/k{number}").tell(mail)
        own.append(mail.n)
        numbers.append(mail.n)
    return numbers


async def reached(stage: Stage, numbers: list[int], *, kind: str = "start", step: int = -1, pid: int = 0) -> None:
    """Wait until each of these turns has come to an event."""
    wanted = {task_of(n) for n in numbers}

    def has_come() -> bool:
        found = {
            event.task
            for event in stage.fleet.events()
            if event.kind == kind and event.step == step and pid in (0, event.pid)
        }
        return wanted <= found

    await eventually(has_come, within_s=WITHIN_S, what=f"{kind} {step} of {len(wanted)} turns", every_s=0.02)


async def all_heard(stage: Stage, sent: Sent) -> None:
    async def is_done() -> bool:
        outputs = await heard(stage.bus, SINK)
        return all(set(outputs.get(key, [])) >= set(numbers) for key, numbers in sent.items())

    await eventually(is_done, within_s=WITHIN_S, what="all outputs", every_s=0.2)


async def at_rest(stage: Stage) -> None:
    """Wait until every run of a living worker has come to its end."""
    alive = {worker.pid for worker in stage.fleet.alive}

    def is_quiet() -> bool:
        events = [event for event in stage.fleet.events() if event.pid in alive]
        ends = sum(event.kind in {"end", "fail"} for event in events)
        return ends == sum(event.kind == "start" for event in events)

    await eventually(is_quiet, within_s=WITHIN_S, what="quiet", every_s=0.1)


async def wake_a_zombie_before_its_commit(stage: Stage) -> TurnVerdict:
    """Stop a host in the last step of its turns, let another do them and the mail behind them, and let it go on."""
    first = await stage.fleet.start()
    sent: Sent = {}
    numbers = await post(stage, sent, keys=8, steps=3, step_s=STEP_S)
    await reached(stage, numbers, kind="step", step=2)
    # at once: a turn that had ended by now would be no zombie's
    stage.fleet.freeze(first)
    behind = await post(stage, sent, keys=8)
    second = await stage.fleet.start(is_awaited=False)
    await stage.fleet.ready(second)
    await reached(stage, behind, kind="end", pid=second.pid)
    await all_heard(stage, sent)
    stage.fleet.thaw(first)
    await at_rest(stage)
    # the zombie's commits are refused or stored by now, and what they sent is handled with the next round
    await post(stage, sent, keys=8)
    await all_heard(stage, sent)
    await at_rest(stage)
    return await judge(stage.bus, stage.fleet, sent)


@pytest.mark.slow
async def test_the_fence_alone_keeps_a_zombies_commit_out(folder: Path) -> None:
    async with staged(folder, has_actors=True, breaks=("never_lost",)) as stage:
        verdict = await wake_a_zombie_before_its_commit(stage)
        assert (verdict.lost, verdict.doubled, verdict.disordered) == ([], [], []), str(verdict)
        assert verdict.reruns >= 8


async def test_control_without_the_fence_a_zombie_doubles_and_disorders_outputs(folder: Path) -> None:
    async with staged(folder, has_actors=True, breaks=("never_lost", "no_fence")) as stage:
        verdict = await wake_a_zombie_before_its_commit(stage)
        assert verdict.doubled, str(verdict)
        assert verdict.disordered, str(verdict)


async def kill_in_mid_turn(stage: Stage) -> TurnVerdict:
    """Kill a host in the third step of its turns; another one takes them over."""
    first = await stage.fleet.start()
    sent: Sent = {}
    numbers = await post(stage, sent, keys=4, steps=4, step_s=STEP_S)
    await reached(stage, numbers, kind="step", step=2)
    stage.fleet.kill(first)
    await stage.fleet.start()
    await all_heard(stage, sent)
    await at_rest(stage)
    return await judge(stage.bus, stage.fleet, sent)


@pytest.mark.parametrize("breaks", [pytest.param((), marks=pytest.mark.slow), ("no_journal",)])
async def test_recorded_steps_are_not_repeated_and_control_without_the_journal_they_are(
    folder: Path, breaks: tuple[str, ...]
) -> None:
    async with staged(folder, has_actors=True, breaks=breaks) as stage:
        verdict = await kill_in_mid_turn(stage)
        assert verdict.reruns >= 4
        if breaks:
            assert len(verdict.repeated) == 8, str(verdict)
        else:
            assert verdict.problems == [], str(verdict)


@pytest.mark.parametrize("breaks", [(), ("no_applied",)])
async def test_handled_mail_is_not_handled_again_and_control_without_applied_it_is(
    folder: Path, breaks: tuple[str, ...]
) -> None:
    # the cursor of the dead host is far behind: its heir reads all mail again
    async with staged(folder, has_actors=True, breaks=breaks, cursor_every_s=3600.0) as stage:
        first = await stage.fleet.start()
        sent: Sent = {}
        for _ in range(3):
            await post(stage, sent, keys=4)
        await all_heard(stage, sent)
        stage.fleet.kill(first)
        await stage.fleet.start()
        await post(stage, sent, keys=4)
        await all_heard(stage, sent)
        await at_rest(stage)
        verdict = await judge(stage.bus, stage.fleet, sent)
        if breaks:
            assert verdict.doubled, str(verdict)
        else:
            assert verdict.problems == [], str(verdict)
            assert verdict.starts == 16


@pytest.mark.slow
@pytest.mark.parametrize("breaks", [(), ("silence_is_death",)])
async def test_an_outage_is_nobodys_death_and_control_by_silence_alone_the_living_are_run_twice(
    folder: Path, breaks: tuple[str, ...]
) -> None:
    async with staged(folder, has_actors=True, breaks=breaks) as stage:
        gate = Gate(stage.server.port)
        try:
            await gate.open()
            await asyncio.gather(stage.fleet.start(), stage.fleet.start(url=gate.url))
            sent: Sent = {}
            await reached(stage, await post(stage, sent, keys=16, steps=10, step_s=1.0))
            await gate.shut()
            stage.server.kill()
            await asyncio.sleep(OUTAGE_S)
            await stage.server.start()
            # the neighbour is back and may look around; the other one is not back yet
            await asyncio.sleep(1.0)
            await gate.open()
            await all_heard(stage, sent)
            await at_rest(stage)
            verdict = await judge(stage.bus, stage.fleet, sent)
        finally:
            await gate.shut()
        if breaks:
            assert verdict.overlaps, str(verdict)
        else:
            assert (verdict.problems, verdict.starts) == ([], 16), str(verdict)
