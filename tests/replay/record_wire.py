"""Record what the version before writes: ``python -m tests.replay.record_wire``, once for each release.

Workers of the older tree (``tests.chaos.upgrade.OLDER``) do tasks and turns on a server of their own; of every kind of
message that they store or send one goes into ``previous.json``, byte for byte.
"""

from __future__ import annotations

import asyncio
import json
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

from callboard.runtime import subjects
from callboard.runtime.actor.ref import ActorRef
from callboard.runtime.bus.base import Bus, Message
from callboard.runtime.client import Client
from callboard.runtime.errors import TaskFailedError
from tests.chaos.handlers import NAME, Job
from tests.chaos.stage import Stage, staged
from tests.chaos.troupe import LONG, SINK, Long
from tests.chaos.turns import heard
from tests.chaos.upgrade import OLDER, older_tree
from tests.support.eventually import eventually

FILE = Path(__file__).with_name("previous.json")
STREAMS = (subjects.LEDGER, subjects.DEAD, subjects.ACTORS)
TURNS = 3


def main() -> None:
    """Write the file anew."""
    with tempfile.TemporaryDirectory(prefix="callboard-record-") as scratch:
        found = asyncio.run(_record(Path(scratch)))
    FILE.write_text(json.dumps({"version": OLDER, "messages": found}, indent=1, sort_keys=True) + "\n", "utf-8")


async def _record(folder: Path) -> list[dict[str, object]]:
    older = older_tree(folder)
    beats: list[Message] = []
    async with staged(folder, log_level="error") as stage:
        await stage.bus.subscribe(subjects.BEAT_ALL, beats.append)
        for has_actors in (False, True):
            await stage.fleet.start(root=older, has_actors=has_actors)
        await _work(stage)
        beats.clear()
        await eventually(lambda: len(beats) > TURNS, what="beats")
        found: dict[str, dict[str, object]] = {}
        for beat in beats:
            found[f"beat {b'partitions' in beat.data}"] = _entry(beat.subject, beat.data, None, folder)
        await _stored(stage.bus, found, folder)
    return list(found.values())


async def _work(stage: Stage) -> None:
    client = Client(stage.bus)
    for job in (Job(n=1), Job(n=2, how="raise", failures=1), Job(n=3, how="give_up")):
        try:
            await client.call(NAME, job, id=f"{NAME}/{job.n}", timeout_s=30)
        except TaskFailedError:
            continue  # the one that gives up leaves a dead letter
    for number in range(TURNS):
        _ = await ActorRef(stage.bus, f"{LONG}/k").tell(Long(n=number, order=number, steps=2, step_s=0.01))

    async def is_done() -> bool:
        return (await heard(stage.bus, SINK)).get("k") == list(range(TURNS))

    await eventually(is_done, within_s=30, what="all outputs")


async def _stored(bus: Bus, found: dict[str, dict[str, object]], folder: Path) -> None:
    for stream in STREAMS:
        async for stored in bus.read(stream):
            kind = re.sub(r"^cb\.(\w+)\.([\w-]+).*", r"\1 \2", stored.subject)
            # of tasks all, of the rest the last one, which says most
            name = stored.subject if stream == subjects.LEDGER else f"{stream} {kind}"
            found[name] = _entry(stored.subject, stored.data, stored.headers, folder)


def _entry(subject: str, data: bytes, headers: Mapping[str, str] | None, folder: Path) -> dict[str, object]:
    # traces name files; where they lay is nobody's business
    return {"subject": subject, "headers": headers, "body": data.decode().replace(str(folder), "")}


if __name__ == "__main__":
    main()
