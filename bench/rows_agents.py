"""Row t: what a step of an agent costs when its model and its tools answer at once."""

from __future__ import annotations

import asyncio
import sys

import msgspec

from bench.broker import Broker
from bench.options import Options
from bench.side_agent import Run
from bench.table import Row, Side

_GOALS = {"p50": "3 ms at most", "p95": "10 ms at most"}


async def steps(broker: Broker, options: Options) -> list[Row]:
    """Row t: steps of an agent, of the model and of tools in turn, journal and budgets' look-ups included."""
    sides = {name: Side(name="ours") for name in _GOALS}
    for _ in range(options.rounds):
        took = sorted(await _measure(broker, options))
        sides["p50"].figures.append(took[len(took) // 2])
        sides["p95"].figures.append(took[len(took) * 95 // 100])
    return [
        Row(
            key="t",
            what=f"a step of an agent, {name}",
            mode=broker.mode,
            concurrency="1",
            unit="ms",
            ours=side,
            goal=_GOALS[name] if broker.mode == "default" else "",
        )
        for name, side in sides.items()
    ]


async def _measure(broker: Broker, options: Options) -> list[float]:
    run = Run(url=broker.url, tasks=2 if options.is_quick else 40, loop=options.loop)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bench.side_agent", msgspec.json.encode(run).decode(), stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    if process.returncode:
        message = f"bench.side_agent ended with status {process.returncode}"
        raise RuntimeError(message)
    return msgspec.json.decode(out.splitlines()[-1], type=list[float])
