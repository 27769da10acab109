"""Turns that send, at the commit layer: grouped by the committer, or a batch each; ``python -m bench.side_turns``.

A turn is its state record against the sequence of the last one, two tells and an event: four messages, all or none.
"""

from __future__ import annotations

import asyncio
import contextlib

from msgspec import Struct

from bench.broker import PAYLOAD
from bench.cast import NOBODY, SENDS
from bench.job import Meter, Report, main
from callboard.runtime import subjects
from callboard.runtime.actor.commit import Committed, TurnCommitter
from callboard.runtime.bus import header
from callboard.runtime.bus.base import Bus, Write
from callboard.runtime.bus.jetstream import connect
from callboard.runtime.clock import SYSTEM_CLOCK


class Turns(Struct, kw_only=True):
    """A round of turns.

    Attributes:
        kind: Type of the actors, of its own for each round.
        lanes: Actors, each with one turn under way.
        seconds: After which no turn is begun.
        is_alone: A batch for each turn.
    """

    url: str
    kind: str
    lanes: int
    seconds: float
    is_alone: bool = False
    loop: str = "uvloop"


async def work(turns: Turns) -> Report:
    """Commit turns for so many seconds."""
    bus = await connect(turns.url.split(","), name="turns")
    committer = TurnCommitter(bus, clock=SYSTEM_CLOCK)
    serving = asyncio.create_task(committer.run())
    loop = asyncio.get_running_loop()
    done = 0

    async def lane(number: int) -> None:
        nonlocal done
        seq = 0
        while loop.time() < end_s:
            writes = _writes(turns.kind, number, seq)
            seq = await (_alone(bus, writes) if turns.is_alone else _grouped(committer, writes))
            done += 1

    end_s = loop.time() + turns.seconds
    meter = Meter()
    await asyncio.gather(*(lane(number) for number in range(turns.lanes)))
    report = meter.report(done)
    serving.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await serving
    await bus.close()
    return report


def _writes(kind: str, number: int, seq: int) -> list[Write]:
    key = f"t{number}"
    return [
        Write(subjects.state(kind, key), PAYLOAD, header.build(expected_seq=seq)),
        *(Write(subjects.mail(NOBODY, f"{index}"), PAYLOAD) for index in range(SENDS - 1)),
        Write(subjects.event(kind, key), PAYLOAD, header.build(ttl_s=3600)),
    ]


async def _grouped(committer: TurnCommitter, writes: list[Write]) -> int:
    result = await committer.commit(*writes)
    if not isinstance(result, Committed):
        message = f"a commit was refused: {result!r}"
        raise RuntimeError(message)  # noqa: TRY004 - what came is no mistake of the caller
    return result.seqs[0]


async def _alone(bus: Bus, writes: list[Write]) -> int:
    ack = await bus.store_batch(writes, timeout_s=30)
    return ack.seq - len(writes) + 1


if __name__ == "__main__":
    main(work, Turns)
