"""Run the peers and write one report: `python -m bench.peers --help`."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import time
from pathlib import Path

import msgspec
from msgspec import Struct

from bench import machine
from bench.peers import catalog, measure, page, text, venvs
from bench.peers.measure import Plan, Round
from bench.peers.peer import Peer, PeerUnavailableError, Variant
from bench.peers.result import Result, Row, as_json
from callboard.runtime import server_binary

OUT = Path(__file__).parents[1] / "out"
QUICK = Plan(tasks=300, seconds=0.0, singles=20, slow_s=1.0, again_within_s=10.0, within_s=30.0, rounds=1)


class Entry(Struct):
    """A row that is being measured."""

    peer: Peer
    variant: Variant
    row: Row
    python: str = ""


def main() -> None:
    """Measure, print, write JSON and HTML."""
    chosen, plan, out = _options()
    # as Ctrl-C: the servers and workers that we started end with us
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    OUT.mkdir(parents=True, exist_ok=True)
    facts = machine.facts(OUT, server_version=server_binary.find().version_text, loop="each its own")
    entries = [_entry(peer, variant) for peer, variant in chosen]
    result = Result(facts=facts, plan=msgspec.to_builtins(plan), rows=[entry.row for entry in entries])
    try:
        asyncio.run(run(entries, plan))
    except KeyboardInterrupt:
        sys.exit("interrupted; the report has what was measured until then")
    finally:
        # whoever interrupts a long run keeps what was measured until then
        out.parent.mkdir(parents=True, exist_ok=True)
        out.with_suffix(".json").write_bytes(as_json(result))
        out.write_text(page.render(result), encoding="utf-8")
        print(text.render(result))
        print(f"\nwritten: {out} and {out.with_suffix('.json').name} beside it")


async def run(entries: list[Entry], plan: Plan) -> None:
    """Measure the rows, round by round, so that what changes on the machine meanwhile meets all of them."""
    for number in range(plan.rounds):
        for entry in entries:
            if not entry.row.reason:
                await _round(entry, plan, number)


async def _round(entry: Entry, plan: Plan, number: int) -> None:
    row = entry.row
    began_s = time.monotonic()
    found = Round()
    try:
        await measure.one(entry.peer, entry.variant, entry.python, plan, found, with_kill=number < plan.kills)
    except (PeerUnavailableError, RuntimeError, OSError) as error:
        row.reason = f"round {number + 1}: {error}"
        _say(f"{row.name}: {row.reason}")
    if found == Round():
        return
    row.rounds.append(found)
    rate = f"{found.rate:,.0f} tasks/s" if found.rate else "no rate"
    _say(f"{row.name}, round {number + 1}: {rate}, {time.monotonic() - began_s:.0f} s")


def _entry(peer: Peer, variant: Variant) -> Entry:
    row = Row(
        name=catalog.row_name(peer, variant),
        peer=peer.name,
        durability=variant.durability,
        recovery=variant.recovery,
        strength=variant.strength,
        worker=peer.worker,
        stores=peer.result,
        cannot=peer.cannot,
    )
    python = ""
    try:
        python = venvs.python_of(peer)
        row.versions = venvs.versions(peer, python)
    except PeerUnavailableError as error:
        row.reason = str(error)
        _say(f"{row.name}: {row.reason}")
    return Entry(peer, variant, row, python)


def _say(text: str) -> None:
    print(f"… {text}", file=sys.stderr, flush=True)


def _options() -> tuple[list[tuple[Peer, Variant]], Plan, Path]:
    parser = argparse.ArgumentParser(prog="python -m bench.peers", description=__doc__)
    usual = Plan()
    parser.add_argument("--peers", default="", help="peers or rows: celery,callboard:always (default: all)")
    parser.add_argument("--quick", action="store_true", help="show that it works; the figures mean little")
    parser.add_argument("--rounds", type=int, help=f"of every row ({usual.rounds})")
    parser.add_argument("--tasks", type=int, help=f"no-op tasks of a round ({usual.tasks})")
    parser.add_argument("--out", type=Path, help="report to write (bench/out/peers-<time>.html, and .json beside it)")
    parser.add_argument("--list", action="store_true", help="print the rows there are")
    given = parser.parse_args()
    if given.list:
        print("\n".join(catalog.row_name(*row) for row in catalog.chosen("")))
        sys.exit()
    try:
        chosen = catalog.chosen(given.peers)
    except ValueError as error:
        parser.error(str(error))
    plan = QUICK if given.quick else usual
    sizes = {"rounds": given.rounds, "tasks": given.tasks}
    plan = msgspec.structs.replace(plan, **{name: size for name, size in sizes.items() if size is not None})
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    return chosen, plan, given.out or OUT / f"peers-{stamp}.html"


if __name__ == "__main__":
    main()
