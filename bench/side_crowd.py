"""Callers of actors, each with an actor of its own and one question open: ``python -m bench.side_crowd '<JSON>'``.

They ask as any client may: a publish with a reply subject. All answers come to one inbox and no caller has a task or a
timer, so that the callers cost little beside what they ask.
"""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta

import msgspec
from msgspec import Struct

from bench.broker import PAYLOAD
from bench.job import Meter, Report, main
from callboard.runtime import subjects
from callboard.runtime.bus import header
from callboard.runtime.bus.base import Message
from callboard.runtime.bus.jetstream import connect

SILENCE_S = 30.0


class Crowd(Struct, kw_only=True):
    """A round of asks.

    Attributes:
        kind: Type of the actors; their keys are numbers.
        message: Name of the message type.
        count: Asks in all.
        warm: Asks before the clock starts.
    """

    url: str
    kind: str
    message: str
    callers: int
    count: int
    warm: int = 0
    loop: str = "uvloop"


class Callers:
    """The state of a round."""

    def __init__(self, crowd: Crowd) -> None:
        self.crowd = crowd
        self.ready: list[int] = list(range(crowd.callers))
        self.asked = 0
        self.answered = 0
        self.began: list[float] = [0.0] * crowd.callers
        self.took: list[float] = []
        self.problem = ""
        self.wake = asyncio.Event()

    def hear(self, message: Message) -> None:
        """Take an answer; its caller is free again."""
        if message.headers:
            self.problem = f"{message.headers}: {message.data[:300]!r}"
        number = int(message.subject.rpartition(".")[2])
        self.took.append(time.perf_counter() - self.began[number])
        self.answered += 1
        self.ready.append(number)
        self.wake.set()


async def work(crowd: Crowd) -> Report:
    """Ask until all is answered; the note says how long one took."""
    bus = await connect(crowd.url, name="crowd")
    callers = Callers(crowd)
    inbox = bus.inbox()
    await bus.subscribe(f"{inbox}.*", callers.hear)
    asks = [subjects.ask(crowd.kind, f"c{number}") for number in range(crowd.callers)]
    places = [f"{inbox}.{number}" for number in range(crowd.callers)]
    deadline = (datetime.now(UTC) + timedelta(seconds=600)).isoformat().replace("+00:00", "Z")
    headers = {header.TYPE: crowd.message, header.DEADLINE: deadline}

    async def ask(most: int) -> None:
        while callers.answered < most:
            free, callers.ready = callers.ready, []
            for number in free:
                if callers.asked == most:
                    callers.ready.append(number)
                    continue
                callers.asked += 1
                callers.began[number] = time.perf_counter()
                await bus.publish(asks[number], PAYLOAD, headers=headers, reply=places[number])
            callers.wake.clear()
            if callers.answered < most:
                await asyncio.wait_for(callers.wake.wait(), SILENCE_S)
            if callers.problem:
                raise RuntimeError(callers.problem)

    await ask(crowd.warm)
    callers.took.clear()
    meter = Meter()
    await ask(crowd.warm + crowd.count)
    took = sorted(callers.took)
    note = msgspec.json.encode([took[len(took) // 2] * 1e6, took[len(took) * 99 // 100] * 1e6]).decode()
    report = meter.report(crowd.count, note=note)
    await bus.close()
    return report


if __name__ == "__main__":
    main(work, Crowd)
