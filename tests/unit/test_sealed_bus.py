"""The bus that reaches nothing: every method of the port refuses, or does nothing that anybody could notice."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from callboard.runtime.bus.base import Bus, ConsumerConfig, StreamConfig, Write
from callboard.runtime.bus.sealed import SealedBus
from callboard.runtime.errors import PermissionDeniedError

QUIET = {"on_reconnect", "reconnect", "close", "inbox", "publish", "flush"}
GIVEN: dict[str, Any] = {
    "write": Write("a", b""),
    "writes": [Write("a", b"")],
    "config": StreamConfig(name="A"),
    "seq": 1,
    "start_seq": 1,
    "subjects": ["a"],
    "tokens": ["t"],
    "delay_s": 1.0,
}
METHODS = [name for name, found in vars(Bus).items() if inspect.isfunction(found) and not name.startswith("_")]


@pytest.mark.parametrize("name", METHODS)
async def test_nothing_goes_out(name: str) -> None:
    bus = SealedBus()
    method = getattr(bus, name)
    wanted = [each for each in inspect.signature(method).parameters.values() if each.default is each.empty]
    given = {each.name: GIVEN.get(each.name, "a") for each in wanted}
    if name == "create_consumer":
        given["config"] = ConsumerConfig(name="c", filter_subject="a")

    async def called() -> None:
        found = method(**given)
        if inspect.isawaitable(found):
            await found

    if name in QUIET:
        await called()
        assert bus.tried == []
    else:
        with pytest.raises(PermissionDeniedError, match="reaches no broker"):
            await called()
        assert len(bus.tried) == 1


def test_every_method_of_the_port_is_tried() -> None:
    assert set(METHODS) > QUIET
    assert len(METHODS) > 25
    assert all(name in vars(SealedBus) for name in METHODS)
