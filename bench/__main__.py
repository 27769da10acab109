"""Run the benches and print one table: `python -m bench --help`."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import time
from pathlib import Path

from bench import (
    machine,
    rows_agents,
    rows_asks,
    rows_ceiling,
    rows_idle,
    rows_joining,
    rows_latency,
    rows_registry,
    rows_scale,
    rows_submit,
    rows_turns,
    rows_work,
    table,
)
from bench.broker import MODES, Broker
from bench.options import ROWS, Options
from bench.table import Row
from callboard.runtime import server_binary

HELP = """rows of tasks: a tasks/s, b CPU a task, c submit, d latency, e lanes, f other concurrencies, g recovery after
kill -9, h profile of row a, u the broker's own ceiling by a C client; rows of actors: i one ask, j asks/s, k turns that
send, l replay, m idle actors, n beside a blocked actor, o a host joins, p a step, q profile of row j, t a step of an
agent; of the fleet: r the registry, s processes scaled by order"""


def main() -> None:
    """Measure, print, write JSON."""
    options, path = _options()
    # as Ctrl-C: the servers and workers that we started end with us
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    asyncio.run(_run(options, path))


async def _run(options: Options, path: Path) -> None:
    options.out.mkdir(parents=True, exist_ok=True)
    facts = machine.facts(
        options.folder or options.out, server_version=server_binary.find().version_text, loop=options.loop
    )
    for name, value in facts.items():
        print(f"{name:>14}: {value}")
    rows: list[Row] = []
    profiles: list[str] = []
    for mode in options.modes:
        if set("abcdefghru") & set(options.rows):
            async with Broker(mode, options.folder) as broker:
                rows += await _rows(broker, options)
                if "h" in options.rows:
                    profiles.append(f"profile, {mode}, {await rows_work.profile(broker, options)}")
        if set("ijklmnopqrt") & set(options.rows):
            # a server without what the tasks have left
            async with Broker(mode, options.folder) as broker:
                rows += await _actor_rows(broker, options)
                if "q" in options.rows:
                    profiles.append(f"profile of asks, {mode}, {await rows_asks.profile(broker, options)}")
    rows.sort(key=lambda row: row.key)
    print()
    print(table.render(rows))
    for text in profiles:
        print()
        print("\n".join(text.splitlines()[:36]))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(table.as_json({**facts}, rows, profiles))
    print(f"\nwritten: {path}")


async def _rows(broker: Broker, options: Options) -> list[Row]:
    wanted = set(options.rows)
    rows: list[Row] = []
    if wanted & set("abef"):
        _say(f"{broker.mode}: worker")
        rows += await rows_work.rows(broker, options)
    if "c" in wanted:
        _say(f"{broker.mode}: submit")
        rows += await rows_submit.rows(broker, options)
    if "d" in wanted:
        _say(f"{broker.mode}: latency")
        rows += await rows_latency.latency(broker, options)
    if "g" in wanted and broker.mode == "always":
        _say(f"{broker.mode}: recovery")
        rows += await rows_latency.recovery(broker, options)
    if "u" in wanted:
        _say(f"{broker.mode}: the broker's own ceiling")
        try:
            rows += await rows_ceiling.rows(broker, options)
        except rows_ceiling.NoCompilerError as error:
            _say(f"row u is left out: {error}")
    if "s" in wanted:
        _say(f"{broker.mode}: a group is scaled")
        rows += await rows_scale.rows(broker, options)
    return rows


async def _actor_rows(broker: Broker, options: Options) -> list[Row]:
    rows: list[Row] = []
    sides = {
        "i": ("one ask", rows_asks.latency),
        "p": ("steps", rows_asks.steps),
        "t": ("steps of an agent", rows_agents.steps),
        "j": ("many asks", rows_asks.rate),
        "k": ("turns that send", rows_turns.sending),
        "l": ("replay", rows_turns.replay),
        "n": ("a blocked actor", rows_asks.blocked),
    }
    for key, (what, measure) in sides.items():
        if key in options.rows:
            _say(f"{broker.mode}: {what}")
            rows += await measure(broker, options)
    if "m" in options.rows:
        _say(f"{broker.mode}: idle actors")
        rows += await rows_idle.rows(options, broker.mode)
    if "r" in options.rows and broker.mode == "default":
        # nothing of it is stored but records
        _say("the registry")
        rows += await rows_registry.rows(options, broker.mode)
    if "o" in options.rows and broker.mode == "always":
        _say("always: a host joins")
        rows += await rows_joining.rows(options)
    return rows


def _say(text: str) -> None:
    print(f"… {text}", file=sys.stderr, flush=True)


def _options() -> tuple[Options, Path]:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__, epilog=HELP)
    defaults = Options()
    parser.add_argument("rows_given", nargs="?", default="", metavar="ROWS", help="the same as --rows")
    parser.add_argument("--rows", default="all", help=f"letters, with or without commas (default: {ROWS})")
    parser.add_argument("--seconds", type=float, default=None, help=f"of a side of a round ({defaults.seconds:g})")
    parser.add_argument("--rounds", type=int, default=None, help=f"of each side ({defaults.rounds})")
    parser.add_argument("--quick", action="store_true", help="show that it works; the figures mean little")
    parser.add_argument("--sync", choices=(*MODES, "both"), default="both", help="sync_interval of the server")
    parser.add_argument("--loop", choices=("uvloop", "asyncio"), default=defaults.loop, help="event loop, both sides")
    parser.add_argument("--json", type=Path, default=None, help="where to write JSON (bench/out/<time>.json)")
    parser.add_argument("--dir", type=Path, default=None, help="folder on the disk to measure")
    given = parser.parse_args()
    wanted = given.rows_given or given.rows
    rows = ROWS if wanted == "all" else wanted.replace(",", "")
    if not rows or set(rows) - set(ROWS):
        parser.error(f"rows are letters of {ROWS}, not {wanted!r}")
    options = Options(
        rows=rows,
        seconds=given.seconds or (0.3 if given.quick else defaults.seconds),
        rounds=given.rounds or (1 if given.quick else defaults.rounds),
        is_quick=given.quick,
        loop=given.loop,
        folder=given.dir,
        modes=MODES if given.sync == "both" else (given.sync,),
    )
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    return options, given.json or options.out / f"{stamp}.json"


if __name__ == "__main__":
    main()
