"""Ending the turns under way when the worker drains, as its strategy says."""

from __future__ import annotations

from collections.abc import Sequence

from callboard.runtime.actor.activation import Activation
from callboard.runtime.actor.execute import DRAINS, STOP_DRAIN
from callboard.runtime.actor.shutdown import Drain


def decide(drain: Drain, running: Sequence[Activation]) -> None:
    """Do what the strategy says about each; repeated until nothing runs."""
    for activation in running:
        turn = activation.turn
        if turn is None:
            # it has not begun, pauses between two attempts, or is being committed, which a stop does not touch
            activation.runner.stop(STOP_DRAIN, DRAINS)
            continue
        match drain.decide("turn", turn.address.type, f"{turn.address}@{turn.mail.seq}", steps=sum(turn.steps)):
            case "cancel":
                activation.runner.stop(STOP_DRAIN, DRAINS)
            case "halt":
                activation.runner.halt()


def tell(running: Sequence[Activation]) -> None:
    """Call the drain hook of each, beside its turn."""
    for activation in running:
        _ = activation.services.spawn(activation.runner.instance.hook("on_drain", is_busy=False), "actor-drain")
