"""What calls of models cost, from the records of the calls themselves: by agent, model, run or purpose."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from decimal import Decimal
from typing import Literal

from msgspec import Struct

from callboard.agents.llm import record
from callboard.agents.llm.base import Usage
from callboard.agents.llm.history import read_calls
from callboard.agents.llm.record import ModelCall, ModelFailure, ModelInput, Record
from callboard.runtime.bus.base import Bus

By = Literal["agent", "model", "run", "category"]


class CostRow(Struct, kw_only=True):
    """What one agent, model, run or purpose has cost.

    Attributes:
        name: Which.
        calls: Calls that were answered.
        failed: Calls that ended with an error.
        unfinished: Calls that began and left no end: interrupted by a death, or under way. What they cost is only known
            to the provider.
        cached: Of the answered ones, those from the cache.
        requests: Requests to providers, as far as they are known: retries and models passed over included.
        input_tokens, output_tokens, cached_tokens: Of answered and failed calls.
        unfinished_tokens: Tokens of the prompts of unfinished calls, by our own count; in no other number.
        usd: Exact sum of the known prices.
        unpriced: Calls with tokens and no known price; ``usd`` lacks them.
        seconds: Wall time of answered and failed calls.
    """

    name: str
    calls: int = 0
    failed: int = 0
    unfinished: int = 0
    cached: int = 0
    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    unfinished_tokens: int = 0
    usd: Decimal = Decimal(0)
    unpriced: int = 0
    seconds: float = 0.0

    @property
    def tokens(self) -> int:
        """Input and output together."""
        return self.input_tokens + self.output_tokens


class CostReport(Struct, frozen=True, kw_only=True):
    """Rows, dearest first, and their sum."""

    by: By
    rows: list[CostRow]
    total: CostRow


def report(records: Iterable[Record], by: By) -> CostReport:
    """Return what calls have cost, added up exactly."""
    rows: dict[str, CostRow] = {}
    total = CostRow(name="total")
    begun: dict[tuple[str, int], ModelInput] = {}
    ended: set[tuple[str, int]] = set()
    for each in records:
        if isinstance(each, ModelInput):
            begun[each.step, each.attempt] = each
            continue
        ended.add((each.step, each.attempt))
        name = _name(each, by)
        for row in (rows.setdefault(name, CostRow(name=name)), total):
            _add(row, each)
    for key, begin in begun.items():
        if key in ended:
            continue
        name = _name(begin, by)
        for row in (rows.setdefault(name, CostRow(name=name)), total):
            row.unfinished += 1
            row.requests += 1
            row.unfinished_tokens += begin.estimated_tokens
    ordered = sorted(rows.values(), key=lambda row: (-row.usd, -row.tokens, row.name))
    return CostReport(by=by, rows=ordered, total=total)


async def cost_report(bus: Bus, by: By, *, since: datetime | None = None, run: str = "") -> CostReport:
    """Return what calls have cost, of all or of one run; see ``read_calls`` and ``report``."""
    found = [each async for each in read_calls(bus, since=since) if not run or each.run == run]
    return report(found, by)


def _name(found: Record, by: By) -> str:
    name: str = getattr(found, by)
    return name or "-"


def _add(row: CostRow, found: ModelCall | ModelFailure) -> None:
    is_cached = isinstance(found, ModelCall) and found.is_cached
    asked = sum(switch.code != record.BREAKER_OPEN for switch in found.switches)
    if isinstance(found, ModelCall):
        row.calls += 1
        row.cached += is_cached
        row.requests += asked + (0 if is_cached else 1 + found.retries)
    else:
        row.failed += 1
        row.requests += max(asked, 1)
    row.seconds += found.latency_s
    if is_cached:
        return
    _add_usage(row, found.usage, found.cost_usd)


def _add_usage(row: CostRow, usage: Usage, cost_usd: Decimal | None) -> None:
    row.input_tokens += usage.input_tokens
    row.output_tokens += usage.output_tokens
    row.cached_tokens += usage.cached_tokens
    if cost_usd is not None:
        row.usd += cost_usd
    elif usage.tokens:
        row.unpriced += 1
