"""The shared context from the command line."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from tests.acceptance.console import Console, eventually


@pytest.fixture(scope="module")
def console(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Console]:
    found = Console(tmp_path_factory.mktemp("context"))
    started = found.start("up", "--port", "0", "--profile", "fast", "--json")
    eventually(lambda: started.events or started.process.poll() is not None, started.err)
    assert started.events, "".join(started.err)
    yield found
    found.close()


def test_a_value_is_set_read_listed_and_deleted(console: Console) -> None:
    run = console.run("ctx", "set", "plan.title", "Spring", "--json")
    assert (run.status, run.json["scope"], run.json["key"]) == (0, "global", "plan.title")
    first = run.json["revision"]
    assert console.run("ctx", "set", "plan.steps", '{"a": [1, null]}').out.startswith(
        'plan.steps = {"a":[1,null]}, rev'
    )
    assert console.run("ctx", "get", "plan.title").out == '"Spring"\n'
    found = console.run("ctx", "get", "plan.title", "--json").json
    assert (found["value"], found["revision"], found["by"].startswith("cli:")) == ("Spring", first, True)
    assert "plan.steps" in console.run("ctx", "ls").out
    assert [each["key"] for each in console.run("ctx", "ls", "plan.t", "--json").json] == ["plan.title"]
    stale = console.run("ctx", "set", "plan.title", "Autumn", "--if", "99")
    assert (stale.status, "error[conflict]" in stale.err) == (4, True)
    assert console.run("ctx", "set", "plan.title", "Autumn", "--if", str(first)).status == 0
    changes = console.run("ctx", "history", "plan.title", "--json").json
    assert [(each["old"], each["new"]) for each in changes] == [(None, "Spring"), ("Spring", "Autumn")]
    assert '"Autumn"' in console.run("ctx", "history", "plan.title").out
    assert console.run("ctx", "rm", "plan.title").out == "1 deleted\n"
    assert console.run("ctx", "rm", "plan.title").status == 5
    assert console.run("ctx", "get", "plan.title").status == 5
    assert console.run("ctx", "rm", "plan.", "--below", "--json").json["deleted"] == 1


def test_scopes_are_apart(console: Console) -> None:
    assert console.run("ctx", "set", "k", "1", "--run", "7").status == 0
    assert console.run("ctx", "set", "k", "2", "--private", "clerk/ann").status == 0
    assert console.run("ctx", "get", "k").status == 5
    assert console.run("ctx", "get", "k", "--run", "7").out == "1\n"
    assert console.run("ctx", "get", "k", "--private", "clerk/ann").out == "2\n"


def test_changes_are_watched(console: Console) -> None:
    watching = console.start("ctx", "watch", "w.", "--all", "--json")
    assert console.run("ctx", "set", "w.a", "1").status == 0
    assert console.run("ctx", "set", "other", "1").status == 0
    assert console.run("ctx", "rm", "w.a").status == 0
    eventually(lambda: len(watching.out) == 2, watching.err)
    assert [(each["key"], each["new"], each["is_deleted"]) for each in watching.events] == [
        ("w.a", 1, False),
        ("w.a", None, True),
    ]
    assert watching.stop(signal.SIGINT) == 130


@pytest.mark.parametrize(
    ("args", "status", "said"),
    [
        (["get", "a..b"], 2, "error[invalid_name]"),
        (["get", "k", "--run", "1", "--private", "a/b"], 2, "give one"),
        (["get", "k", "--private", "clerk"], 2, "error[invalid_name]"),
        (["set", "k"], 2, "VALUE"),
        (["set", "k", "1", "--ttl", "soon"], 2, "soon"),
    ],
)
def test_what_cannot_be_is_said(console: Console, args: list[str], status: int, said: str) -> None:
    run = console.run("ctx", *args)
    assert (run.status, said in run.err) == (status, True), run.err
