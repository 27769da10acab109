"""Actors from the command line: one process that serves and reloads, and everything a person asks of it."""

from __future__ import annotations

import shlex
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.console import Background, Console, eventually

HELLO = Path(__file__).parents[2] / "examples" / "hello.py"
MORE = """

import asyncio
from collections.abc import AsyncIterator
from callboard import RetryPolicy

class Draft(Struct):
    words: list[str] = []

class Fail(Struct):
    text: str

class Hold(Struct):
    seconds: float

class Writer(Actor, name="writer", retry=RetryPolicy(attempts=1)):
    @on
    async def draft(self, m: Draft) -> AsyncIterator[str]:
        for word in m.words:
            yield word + " "

    @on
    async def fail(self, m: Fail) -> None:
        raise ValueError(m.text)

    @on
    async def hold(self, m: Hold) -> str:
        await asyncio.sleep(m.seconds)
        return "held"
"""


@pytest.fixture(scope="module")
def console(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Console]:
    found = Console(tmp_path_factory.mktemp("actors"))
    yield found
    found.close()


@pytest.fixture(scope="module")
def dev(console: Console) -> Background:
    (console.folder / "hello.py").write_text(HELLO.read_text())
    (console.folder / "writer.py").write_text("from hello import Struct, Actor, on" + MORE)
    return console.dev("hello.py", "writer.py")


def test_it_says_what_it_serves(dev: Background) -> None:
    ready = dev.events[0]
    assert (ready["event"], ready["actors"], ready["capabilities"]) == (
        "ready",
        ["greeter", "writer"],
        ["greet", "shout"],
    )
    assert ready["url"].startswith("nats://127.0.0.1:")


def test_an_actor_is_asked_and_remembers(console: Console, dev: Background) -> None:
    first = console.run("ask", "greeter/ann", "Ask", '{"text": "bob"}', "--json")
    assert (first.status, first.json) == (
        0,
        {"address": "greeter/ann", "type": "Ask", "value": {"text": "hi bob", "turn": 1}},
    )
    again = console.run("ask", "greeter/ann", "Ask", "-", "--key", "k", text='{"text": "eve"}')
    assert '"turn": 2' in again.out
    assert console.run("ask", "greeter/ann", "Ask", '{"text": "eve"}', "--key", "k").out == again.out
    assert console.run("agents", "state", "greeter/ann", "--json").json == {"turns": 2}


def test_an_answer_comes_in_parts(console: Console, dev: Background) -> None:
    run = console.run("ask", "writer/1", "Draft", '{"words": ["a", "b"]}', "--stream")
    assert (run.status, run.out) == (0, "a b \n")
    lines = console.run("ask", "writer/1", "Draft", '{"words": ["a", "b"]}', "--stream", "--json").lines
    assert [line["event"] for line in lines] == ["part", "part", "finished"]
    assert [line["value"] for line in lines[:2]] == ["a ", "b "]


@pytest.mark.parametrize(
    ("args", "status", "said"),
    [
        (["ask", "writer/2", "Fail", '{"text": "no ink"}'], 1, "error[ask_failed]: writer/2 answered with an error"),
        (["ask", "writer/2", "Nothing", "{}"], 2, "error[unknown_message]"),
        (["ask", "writer/2", "Fail", '{"text": 7}'], 2, "error[decode]"),
        (["ask", "writer/2", "Fail", "{"], 2, "error[decode]"),
        (["ask", "nobody/1", "Fail"], 5, "error[no_host]"),
        (["ask", "writer/3", "Hold", '{"seconds": 30}', "--timeout", "0.3"], 6, "error[ask_timeout]"),
        (["ask", "writer", "Fail"], 2, "write <type>/<key>"),
        (["ask", "Big Type/1", "Fail"], 2, "error[invalid_name]"),
        (["tell", "*/1", "Fail"], 2, "error[invalid_name]"),
        (["tell", "writer/2", "Fail", "--id", "~17"], 2, "error[invalid_name]"),
        (["ask", "greter/ann", "Greet"], 5, "waits for it; did you mean greeter?"),
        (["agents", "show", "greeter/never"], 5, "nothing is known of greeter/never"),
        (["agents", "show", "greter/ann"], 5, "it was removed; did you mean greeter/ann?"),
        (["agents", "state", "greeter/never"], 5, "no state"),
        (["agents", "ls", "greeter.>"], 2, "error[invalid_name]"),
        (["agents", "pause", "nobody/1"], 5, "error[no_host]"),
        (["agents", "cancel", "greeter/idle"], 2, "no turn to cancel"),
    ],
)
def test_what_goes_wrong_is_said_with_a_status_of_its_own(
    console: Console, dev: Background, args: list[str], status: int, said: str
) -> None:
    run = console.run(*args)
    assert run.status == status, run.err
    assert said in run.err
    assert "Traceback" not in run.err
    assert run.out == ""


def test_mail_waits_for_a_paused_actor_and_runs_when_it_is_resumed(console: Console, dev: Background) -> None:
    actor = "greeter/it's a *key*, ünïcode & all"
    assert console.run("agents", "pause", actor, "--reason", "look", "--json").json["status"] == "paused"
    told = console.run("tell", actor, "Ask", '{"text": "x"}', "--id", "one", "--json").json
    assert (told["address"], told["id"], told["is_delayed"]) == (actor, "one", False)
    again = console.run("tell", actor, "Ask", '{"text": "x"}', "--id", "one")
    assert again.out == f"{told['seq']}\n"
    assert f"is paused; the message waits until `callboard agents resume {shlex.quote(actor)}`" in again.err
    (waiting,) = console.run("agents", "mailbox", actor, "--json").json
    assert (waiting["seq"], waiting["type"], waiting["id"], waiting["is_ask"]) == (told["seq"], "Ask", "one", False)
    shown = console.run("agents", "show", actor)
    assert "paused: look" in shown.out
    assert "none is over yet" in shown.out
    assert "none yet" in shown.out
    assert "1 waiting, the oldest (Ask)" in shown.out
    assert console.run("agents", "resume", actor).status == 0
    eventually(lambda: console.run("agents", "mailbox", actor, "--json").json == [])

    def has_run() -> bool:
        # the mail under way is not among the waiting
        listed = {line["address"]: line for line in console.run("agents", "ls", "greeter", "--json").json}
        return (listed[actor]["status"], listed[actor]["turns"]) == ("idle", 1)

    eventually(has_run)


def test_a_turn_is_seen_and_cancelled(console: Console, dev: Background) -> None:
    asking = console.start("ask", "writer/4", "Hold", '{"seconds": 60}')

    def running() -> object:
        run = console.run("agents", "show", "writer/4", "--json")
        return run.status == 0 and run.json["running"]["running"]

    eventually(running)
    assert "(Hold)" in console.run("agents", "show", "writer/4").out
    assert console.run("agents", "cancel", "writer/4", "--reason", "enough").status == 0
    assert asking.wait() == 1
    assert "enough" in "".join(asking.err)


def test_dead_letters_go_back_into_the_mailbox(console: Console, dev: Background) -> None:
    assert console.run("ask", "writer/5", "Fail", '{"text": "no ink"}').status == 1
    eventually(lambda: console.run("agents", "requeue", "writer/5", "--json").json["requeued"] == 1)


def test_it_says_how_many_dead_letters_went_back(console: Console, dev: Background) -> None:
    assert "writer/7 has no dead letter to put back" in console.run("agents", "requeue", "writer/7").out
    assert console.run("ask", "writer/7", "Fail", '{"text": "no ink"}').status == 1
    assert "writer/7 has 1 dead letter back" in console.run("agents", "requeue", "writer/7").out


def test_the_dead_letters_of_an_actor_are_listed(console: Console, dev: Background) -> None:
    seqs = [int(console.run("tell", "writer/9", "Fail", f'{{"text": "no {what}"}}').out) for what in ("ink", "pen")]
    eventually(lambda: len(console.run("dead", "ls", "--agent", "writer/9", "--json").json) == 2)
    found = console.run("dead", "ls", "--agent", "writer/9", "--json").json
    assert [each["letter"]["seq"] for each in found] == seqs[::-1]
    assert found[0]["letter"]["failure"]["message"] == "no pen"
    assert set(found[0]) == {"seq", "stored_at", "letter"}
    shown = console.run("dead", "ls", "--agent", "writer/9")
    assert shown.out.splitlines()[0].split() == ["ACTOR", "MAIL", "TYPE", "AT", "RUNS", "CAUSE"]
    assert f"writer/9  {seqs[0]}" in shown.out
    assert "ValueError: no ink" in shown.out
    assert len(console.run("dead", "ls", "--agent", "writer", "--limit", "1", "--json").json) == 1
    assert console.run("dead", "ls", "--agent", "writer/none", "--json").json == []
    # tasks have none, and it says where there are some
    plain = console.run("dead", "ls")
    assert plain.status == 0
    assert "`callboard dead ls --agent writer`" in plain.err
    wrong = console.run("dead", "ls", "--agent", "writer", "--capability", "shout")
    assert (wrong.status, "give one of them" in wrong.err) == (2, True)
    assert console.run("dead", "ls", "--agent", "Big Type").status == 2
    # the number in the column goes to requeue
    assert console.run("agents", "requeue", "writer/9", str(seqs[0]), "--json").json["requeued"] == 1


def test_a_second_dev_says_whose_server_it_joins_and_who_else_serves(console: Console, dev: Background) -> None:
    second = console.start("dev", "hello.py", "--port", "0", "--json")
    eventually(lambda: second.events or second.process.poll() is not None, second.err)
    said = "".join(second.err)
    url = dev.events[0]["url"]
    assert f"a server runs on this folder already, at {url} (process {dev.process.pid} started it)" in said
    assert "`callboard dev hello.py --data FOLDER --port 0`" in said
    first = dev.events[0]["worker"]
    assert f"greeter, shout: also served by worker {first} (process {dev.process.pid})" in said
    assert second.events[0]["url"] == url
    assert second.stop() == 0
    assert "also served" not in "".join(dev.err)


def test_a_message_that_nobody_hosts_is_stored_with_a_warning(console: Console, dev: Background) -> None:
    told = console.run("tell", "writr/1", "Draft")
    assert (told.status, told.out.strip().isdigit()) == (0, True)
    assert "no worker hosts 'writr' now; the message waits until one does; did you mean writer?" in told.err
    run = console.run("submit", "shuot", '""')
    assert "the task waits until one does; did you mean shout?" in run.err
    assert not console.run("tell", "writer/8", "Draft").err


def test_hosts_with_different_code_are_marked_in_the_list(console: Console, dev: Background) -> None:
    assert console.run("ask", "writer/10", "Hold", '{"seconds": 0}').status == 0

    def listed() -> dict[str, bool]:
        return {line["address"]: line["has_mixed_code"] for line in console.run("agents", "ls", "--json").json}

    assert not any(listed().values())
    other = MORE.replace("text: str\n\nclass Hold", "text: str\n    more: int = 0\n\nclass Hold")
    (console.folder / "other.py").write_text("from hello import Struct, Actor, on" + other)
    worker = console.start("worker", "start", "other.py", "--json")
    eventually(lambda: worker.events or worker.process.poll() is not None, worker.err)
    found = listed()
    assert found["writer/10"]
    assert not any(is_mixed for address, is_mixed in found.items() if not address.startswith("writer/"))
    assert not any(line["has_mixed_code"] for line in console.run("agents", "ls", "--quick", "--json").json)
    run = console.run("agents", "ls", "writer")
    assert "writer/10  active *" in run.out
    assert f"on {worker.events[0]['worker']}" in run.err
    assert "deploy one code to all of them" in run.err
    assert console.run("agents", "ls", "greeter").err == ""
    assert worker.stop() == 0


def test_new_code_is_taken_and_broken_code_is_reported(tmp_path: Path) -> None:
    console = Console(tmp_path)
    try:
        source = tmp_path / "hello.py"
        source.write_text(HELLO.read_text())
        started = console.dev("hello.py")

        def answer() -> str:
            text: str = console.run("ask", "greeter/ann", "Ask", '{"text": "bob"}', "--json").json["value"]["text"]
            return text

        assert answer() == "hi bob"
        source.write_text(HELLO.read_text().replace("hi {", "hello {"))
        eventually(lambda: [e["event"] for e in started.events] == ["ready", "reloaded"], started.err)
        assert answer() == "hello bob"
        source.write_text("import nothing_of_that_name\n")
        eventually(lambda: started.events[-1]["event"] == "failed", started.err)
        assert "nothing_of_that_name" in started.events[-1]["message"]
        assert answer() == "hello bob"
        source.write_text(HELLO.read_text().replace("hi {", "moin {").replace('"shout"', '"whisper"'))
        eventually(lambda: started.events[-1]["event"] == "ready", started.err)
        assert started.events[-1]["capabilities"] == ["greet", "whisper"]
        assert answer() == "moin bob"
        assert console.run("agents", "state", "greeter/ann", "--json").json == {"turns": 4}
        server = int((tmp_path / ".callboard/data/server.json").read_text().split('"pid":')[1].split(",")[0])
        assert started.stop(signal.SIGINT) == 0
        assert not Path(f"/proc/{server}").exists()
        # a second one goes on where the first left off
        again = console.dev("hello.py")
        assert console.run("agents", "state", "greeter/ann", "--json").json == {"turns": 4}
        assert again.stop(signal.SIGTERM) == 0
    finally:
        console.close()


def test_code_that_is_broken_from_the_start_ends_it(tmp_path: Path) -> None:
    console = Console(tmp_path)
    (tmp_path / "bad.py").write_text("def (\n")
    run = console.run("dev", "bad.py", "--port", "0", "--profile", "fast")
    assert run.status == 2
    assert "error[module_load]: bad.py cannot be imported: SyntaxError" in run.err
    assert "line 1" in run.err
