"""``callboard up --cluster 3``: three servers and two workers, each a process that may die."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.console import SHOP, Background, Console, eventually, is_alive

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]
READY_WITHIN_S = 60
AGAIN_WITHIN_S = 30


@pytest.fixture
def console(tmp_path: Path) -> Iterator[Console]:
    found = Console(tmp_path)
    (tmp_path / "shop.py").write_text(SHOP)
    yield found
    found.close()


def up(console: Console, *args: str, workers: int = 2) -> Background:
    started = console.start("up", "--cluster", "3", "--port", "0", "--json", *args)
    eventually(
        lambda: (len(of(started, "worker")) >= workers and of(started, "ready")) or started.process.poll() is not None,
        started.err,
        timeout_s=READY_WITHIN_S,
    )
    assert started.process.poll() is None, "".join(started.err)
    return started


def of(background: Background, event: str) -> list[dict[str, Any]]:
    return [found for found in background.events if found["event"] == event]


def works(console: Console, text: str) -> None:
    done = console.run("submit", "echo", f'"{text}"', "--wait", "--timeout", "25s", "--json", "--no-warn")
    assert done.status == 0, done.err
    assert done.json["result"] == text


def test_any_one_process_may_die_and_comes_back(console: Console) -> None:
    started = up(console, "--workers", "2", "shop.py")
    (ready,) = of(started, "ready")
    assert [server["name"] for server in ready["servers"]] == ["cb1", "cb2", "cb3"]
    assert ready["url"] == ",".join(server["url"] for server in ready["servers"])
    works(console, "all there")
    plan = console.run("provision", "--plan", "--json")
    assert (plan.status, plan.json["changes"]) == (0, [])

    for server in ready["servers"]:
        os.kill(server["pid"], signal.SIGKILL)
        works(console, f"without {server['name']}")
        eventually(
            lambda: any(found["name"] == server["name"] for found in of(started, "server")),  # noqa: B023 - at once
            started.err,
            timeout_s=AGAIN_WITHIN_S,
        )
        # two of three must know each other again before the next one dies
        works(console, f"with {server['name']} again")

    first = of(started, "worker")[0]
    os.kill(first["pid"], signal.SIGKILL)
    works(console, "one worker")
    eventually(lambda: len(of(started, "worker")) == 3, started.err, timeout_s=AGAIN_WITHIN_S)
    assert of(started, "worker")[-1]["number"] == first["number"]

    pids = [found["pid"] for event in ("server", "worker") for found in of(started, event)]
    assert started.stop(signal.SIGINT, timeout_s=40) == 0, "".join(started.err)
    assert not any(is_alive(pid) for pid in pids)
    found = console.run("workers", "ls")
    assert found.status == 3


def test_a_lost_majority_is_told_by_name_and_what_is_left_dead_stays_dead(console: Console) -> None:
    started = up(console, "--no-restart", workers=0)
    (ready,) = of(started, "ready")
    _, second, third = ready["servers"]
    for server in (second, third):
        os.kill(server["pid"], signal.SIGKILL)
    eventually(lambda: len(of(started, "server_ended")) == 2, started.err)
    assert [found["restart_in_s"] for found in of(started, "server_ended")] == [None, None]

    def is_told() -> bool:
        said = console.run("submit", "echo", '"x"', "--no-warn")
        assert said.status == 3, said.err
        return (
            "the cluster has lost its majority: 1 of 3 servers answer (cb1 at nats://127.0.0.1:" in said.err
            and f"cb2 at {second['url']} is away; cb3 at {third['url']} is away" in said.err
        )

    eventually(is_told, started.err, timeout_s=30)
    assert started.stop(timeout_s=20) == 0


def test_one_kind_of_data_folder_is_not_taken_for_the_other(console: Console) -> None:
    single = console.up()
    assert single.stop() == 0
    refused = console.run("up", "--cluster", "3", "--port", "0")
    assert refused.status == 1
    assert "holds the data of a single server" in refused.err
    started = up(console, "--data", "three", workers=0)
    assert started.stop() == 0
    refused = console.run("up", "--data", "three", "--port", "0")
    assert refused.status == 1
    assert "holds the data of 3 servers: go on with `callboard up --cluster 3`" in refused.err
