"""Slots of one process, shared fairly among tenants: a flood of one leaves the others their share.

Each tenant has a connection, a worker and pools of its own; what they share is the number of slots of a capability.
That is divided anew whenever a task comes or ends, by weight and among those who have work only (max-min fairness). A
tenant without work keeps one slot's worth of standing credit, so that its next task is seen at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct

from callboard.runtime.capability import Capability
from callboard.runtime.pool import Pool


class Claimant(Struct, frozen=True, kw_only=True):
    """What one tenant asks for.

    Attributes:
        wanted: Slots that it could use now.
        taken: Slots that it has in use.
        weight: Its part, relative to the others'.
        cap: Most that it may have; None is no limit of its own.
    """

    wanted: int
    taken: int
    weight: int = 1
    cap: int | None = None


def divide(slots: int, claimants: Sequence[Claimant]) -> list[int]:
    """Return how many slots each claimant may use.

    Nobody gets more than it wants or may have, what one leaves the others get by weight, and everybody gets at least
    one. A share that somebody else still has in use is not given out before it is free: together they use at most
    ``slots``, or one each where there are more claimants than slots.
    """
    targets = _targets(slots, claimants)
    in_use = sum(each.taken for each in claimants)
    shares = []
    for target, each in zip(targets, claimants, strict=True):
        free = slots - (in_use - each.taken)
        shares.append(max(1, min(target, free)))
    return shares


def _targets(slots: int, claimants: Sequence[Claimant]) -> list[int]:
    """Return the shares as they are once everybody has let go of what is not theirs."""
    limits = [max(1, min(each.wanted, each.cap or each.wanted)) for each in claimants]
    shares = [1] * len(claimants)
    # One slot after the other goes to whoever is furthest below its part: a handful of tenants, some dozens of slots.
    for _ in range(slots - len(claimants)):
        hungry = [n for n, share in enumerate(shares) if share < limits[n]]
        if not hungry:
            break
        least = min(hungry, key=lambda n: ((shares[n] + 1) / claimants[n].weight, n))
        shares[least] += 1
    return shares


class Fairness:
    """The sharing among the tenants of one process; give each tenant's worker a ``seat`` of it."""

    def __init__(self) -> None:
        """Begin without tenants."""
        self._pools: dict[str, list[TenantPool]] = {}

    def seat(self, tenant: str, *, weight: int = 1, cap: int | None = None) -> Seat:
        """Return the place of a tenant, for ``WorkerOptions.seat``.

        Args:
            tenant: Its name, for logs.
            weight: Its part of the slots, relative to the others'; at least 1.
            cap: Most slots of one capability that it may have.
        """
        return Seat(self, tenant, weight=max(1, weight), cap=cap)

    def enter(self, pool: TenantPool) -> None:
        """Take a pool into the sharing of its capability."""
        self._pools.setdefault(pool.capability.name, []).append(pool)

    def leave(self, pool: TenantPool) -> None:
        """Give a closed pool's share to the others."""
        pools = self._pools.get(pool.capability.name, [])
        if pool in pools:
            pools.remove(pool)

    def shares(self) -> Mapping[str, Mapping[str, int]]:
        """Return the present division, by capability and tenant."""
        return {name: {pool.seat.tenant: pool.slots for pool in pools} for name, pools in self._pools.items()}

    def balance(self, changed: TenantPool) -> None:
        """Divide the slots of a capability anew; pools that got more begin at once."""
        pools = self._pools.get(changed.capability.name, [])
        if changed not in pools:
            return
        shares = divide(changed.together, [pool.claim_of_slots() for pool in pools])
        for pool, share in zip(pools, shares, strict=True):
            has_more = share > pool.slots
            pool.slots = share
            if has_more and pool is not changed:
                pool.use()


class Seat:
    """One tenant's place in a ``Fairness``."""

    def __init__(self, fairness: Fairness, tenant: str, *, weight: int, cap: int | None) -> None:
        self.fairness = fairness
        self.tenant = tenant
        self.weight = weight
        self.cap = cap

    def pool(self, capability: Capability[..., Any], **options: Any) -> Pool:  # noqa: ANN401 - those of Pool
        """Return a pool that takes its share only."""
        return TenantPool(self, capability, **options)


class TenantPool(Pool):
    """A pool whose number of slots is its tenant's present share.

    Attributes:
        together: Slots of all tenants' pools of the capability.
    """

    def __init__(self, seat: Seat, capability: Capability[..., Any], **options: Any) -> None:  # noqa: ANN401 - as above
        super().__init__(capability, **options)
        self.seat = seat
        self.together = self.slots
        self.slots = 1
        seat.fairness.enter(self)

    def claim_of_slots(self) -> Claimant:
        """Return what it wants: what it has, what the broker has for it, and one more to see what comes."""
        taken = self._taken()
        waiting = 0 if self.is_closed else max(1, sum(self._lanes.backlog.values()))
        return Claimant(wanted=taken + waiting, taken=taken, weight=self.seat.weight, cap=self.seat.cap)

    def use(self) -> None:
        """Start and ask for what a larger share allows."""
        self._start_slots()
        super()._regrant()

    async def drain(self) -> None:
        """Stop pulling; the others may have its share as it becomes free."""
        await super().drain()
        self.seat.fairness.balance(self)

    def shut(self) -> None:
        """Let go of slots and share."""
        super().shut()
        self.seat.fairness.leave(self)

    def _regrant(self) -> None:
        self.seat.fairness.balance(self)
        super()._regrant()
