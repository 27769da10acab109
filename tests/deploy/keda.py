"""KEDA's ``nats-jetstream`` scaler and the autoscaler behind it, as a few functions of what a server shows.

Source: KEDA 2.20's scaler: one consumer a trigger, load = pending + handed out and unsettled, read from ``/jsz`` of one
account; a consumer that is not there is an error. Kubernetes' autoscaler: load / target, rounded up, within bounds.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Mapping
from typing import Any

import httpx

Manifest = dict[str, Any]
Jsz = Mapping[str, Any]


class MissingConsumerError(Exception):
    """The scaler finds no such consumer."""


def fetch(url: str, account: str) -> Jsz:
    """Return what the monitoring port says of an account."""
    answer = httpx.get(
        f"{url}/jsz", params={"acc": account, "consumers": "true", "config": "true"}, trust_env=False, timeout=5
    )
    found: Jsz = answer.raise_for_status().json()
    return found


def load(jsz: Jsz, trigger: Manifest) -> int:
    """Return the load of one trigger.

    Raises:
        MissingConsumerError: If account, stream or consumer is not there.
    """
    wanted = trigger["metadata"]
    for account in jsz.get("account_details") or ():
        if wanted["account"] not in {account["id"], account["name"]}:
            continue
        for stream in account.get("stream_detail") or ():
            for consumer in stream.get("consumer_detail") or () if stream["name"] == wanted["stream"] else ():
                if consumer["name"] == wanted["consumer"]:
                    return int(consumer["num_pending"]) + int(consumer["num_ack_pending"])
    message = f"{wanted['stream']} has no consumer {wanted['consumer']} in {wanted['account']}"
    raise MissingConsumerError(message)


def wanted(scaled: Manifest, read: Callable[[str], Jsz], *, replicas: int) -> int:
    """Return how many pods there shall be.

    Args:
        scaled: The ScaledObject.
        read: Gives ``/jsz`` of an account.
        replicas: How many there are, for when nothing can be read.
    """
    spec = scaled["spec"]
    low, high = spec["minReplicaCount"], spec["maxReplicaCount"]
    try:
        loads = {each["name"]: load(read(each["metadata"]["account"]), each) for each in spec["triggers"]}
    except (MissingConsumerError, httpx.HTTPError):
        fallback = spec["fallback"]
        assert fallback["behavior"] == "currentReplicasIfHigher"
        return max(replicas, int(fallback["replicas"]))
    modifiers = spec["advanced"]["scalingModifiers"]
    total = evaluate(modifiers["formula"], loads)
    if total <= float(modifiers["activationTarget"]):
        return int(low)
    return int(min(high, max(1, low, math.ceil(total / float(modifiers["target"])))))


def evaluate(formula: str, values: Mapping[str, int]) -> float:
    """Return the value of a formula of names, ``+`` and ``max``; anything else is an error."""

    def at(node: ast.expr) -> float:
        match node:
            case ast.Name(name):
                return values[name]
            case ast.BinOp(left, ast.Add(), right):
                return at(left) + at(right)
            case ast.Call(ast.Name("max"), arguments, []):
                return max(at(each) for each in arguments)
            case _:
                message = f"not a part of our formulas: {ast.dump(node)}"
                raise ValueError(message)

    return at(ast.parse(formula, mode="eval").body)
