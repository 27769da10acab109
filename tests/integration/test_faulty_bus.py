"""The bus with faults before a real server: what it injects, a tail and its writers must survive there as well."""

from __future__ import annotations

import asyncio
from random import Random

import pytest

from callboard.runtime.bus.base import Write
from callboard.runtime.bus.faulty import FaultRates, FaultyBus
from callboard.runtime.bus.jetstream import connect
from callboard.runtime.errors import BusError
from tests.support.broker import LOG
from tests.support.eventually import eventually
from tests.support.server import NatsServer

RATES = FaultRates(
    drop=0.03, lose_ack=0.03, delay=0.1, refuse=0.03, reopen=0.03, cut=0.01, late=0.5, max_delay_s=0.02, silence_s=0.05
)


@pytest.mark.parametrize("seed", range(3))
async def test_a_tail_under_faults_and_a_restart_leaves_out_nothing(nats_server: NatsServer, seed: int) -> None:
    truth = await connect(nats_server.url, name="truth")
    bus = FaultyBus(await connect(nats_server.url, name="faulty"), Random(seed), FaultRates(max_cut_s=0.2))
    got: list[int] = []
    try:
        await truth.create_stream(LOG)
        tail = await bus.tail("L", "l.a", lambda stored: got.append(stored.seq), start_seq=1)
        bus.faults.rates = RATES
        acked: list[int] = []
        for number in range(300):
            if number == 150:
                await nats_server.restart()
            try:
                acked.append((await bus.store(Write("l.a", b""), timeout_s=1)).seq)
            except BusError:
                await asyncio.sleep(0.01)
        bus.faults.rates = FaultRates()
        await eventually(lambda: bus.is_connected)
        info = await truth.stream_info("L")
        assert info is not None
        await eventually(lambda: tail.next_seq > info.last_seq, within_s=10)
        assert got == list(range(1, info.last_seq + 1))
        assert set(acked) <= set(got)
        assert bus.faults.injected.total() > 50
    finally:
        await bus.close()
        await truth.close()
