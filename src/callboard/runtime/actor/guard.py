"""Notice that the actors' stream was deleted, or is another one: nothing in memory is true any more then."""

from __future__ import annotations

from collections.abc import Callable

from callboard.runtime import subjects
from callboard.runtime.bus.base import Bus, StreamInfo
from callboard.runtime.clock import Clock
from callboard.runtime.errors import BusError, TopologyError

LOOK_EVERY_S = 2.0
# One look may come between two leaders.
LOOKS = 2


async def watch(bus: Bus, *, clock: Clock, known_seq: Callable[[], int]) -> None:
    """Look every two seconds, for ever. One round trip a look.

    Args:
        bus: The worker's connection.
        clock: Time.
        known_seq: Returns the highest sequence that we wrote or read; the stream cannot end before it.

    Raises:
        TopologyError: If two looks in a row found the stream gone or too short. Starting again in silence would run
            actors without their state.
    """
    bad = 0
    while True:
        await clock.sleep(LOOK_EVERY_S)
        least = known_seq()
        try:
            info = await bus.stream_info(subjects.ACTORS)
        except BusError:
            continue
        problem = problem_of(info, least)
        bad = bad + 1 if problem is not None else 0
        if problem is not None and bad >= LOOKS:
            raise TopologyError(problem)


def problem_of(info: StreamInfo | None, known_seq: int) -> str | None:
    """Return what is wrong with the stream that stands, None when it may be the one we know."""
    if info is None:
        return f"stream {subjects.ACTORS} was deleted under the worker: restore it, or run 'callboard provision' anew"
    if info.leader is not None and info.last_seq < known_seq:
        return (
            f"stream {subjects.ACTORS} ends at {info.last_seq}, and {known_seq} was read from it before: it was "
            "deleted and made anew, or restored from an older copy; start the workers again once it is as it should be"
        )
    return None
