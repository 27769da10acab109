"""Row t: what a step of an agent costs when its model and its tools answer at once, without a budget and on one."""

from __future__ import annotations

import asyncio
import sys

import msgspec

from bench.broker import Broker
from bench.options import Options
from bench.side_agent import Run
from bench.table import Row, Side

_GOALS = {"p50": "3 ms at most", "p95": "10 ms at most"}
_AGENTS = {"bench-looker": "a step of an agent", "bench-payer": "the same, its task on a budget"}


async def steps(broker: Broker, options: Options) -> list[Row]:
    """Row t: steps of an agent, of the model and of tools in turn, with the journal; then with a budget as well."""
    sides = {(agent, name): Side(name="ours") for agent in _AGENTS for name in _GOALS}
    for _ in range(options.rounds):
        for agent in _AGENTS:
            took = sorted(await _measure(broker, options, agent))
            sides[agent, "p50"].figures.append(took[len(took) // 2])
            sides[agent, "p95"].figures.append(took[len(took) * 95 // 100])
    return [
        Row(
            key="t",
            what=f"{_AGENTS[agent]}, {name}",
            mode=broker.mode,
            concurrency="1",
            unit="ms",
            ours=side,
            goal=_GOALS[name] if broker.mode == "default" else "",
        )
        for (agent, name), side in sides.items()
    ]


async def _measure(broker: Broker, options: Options, agent: str) -> list[float]:
    run = Run(url=broker.url, tasks=2 if options.is_quick else 40, agent=agent, loop=options.loop)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bench.side_agent", msgspec.json.encode(run).decode(), stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    if process.returncode:
        message = f"bench.side_agent ended with status {process.returncode}"
        raise RuntimeError(message)
    return msgspec.json.decode(out.splitlines()[-1], type=list[float])
