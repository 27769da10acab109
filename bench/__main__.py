"""Run the benches and print one table: `python -m bench --help`."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import time
from pathlib import Path

from bench import machine, rows_latency, rows_submit, rows_work, table
from bench.broker import MODES, Broker
from bench.options import ROWS, Options
from bench.table import Row
from callboard.runtime import server_binary

HELP = """rows: a tasks/s, b CPU a task, c submit, d latency, e lanes, f other concurrencies, g recovery after kill -9,
h profile of row a"""


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
        async with Broker(mode, options.folder) as broker:
            rows += await _rows(broker, options)
            if "h" in options.rows:
                profiles.append(f"profile, {mode}, {await rows_work.profile(broker, options)}")
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
