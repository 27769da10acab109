"""A server, a worker, and everything a person does with tasks."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator

import pytest

from tests.acceptance.console import Background, Console, eventually


@pytest.fixture(scope="module")
def console(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Console]:
    found = Console(tmp_path_factory.mktemp("shop"))
    found.up()
    yield found
    found.close()


@pytest.fixture(scope="module")
def worker(console: Console) -> Background:
    return console.work("--labels", "zone=a")


def test_a_second_up_on_the_folder_is_refused(console: Console) -> None:
    run = console.run("up", "--port", "0")
    assert run.status == 4
    assert "error[data_folder_in_use]" in run.err
    assert console.running[0].events[0]["url"] in run.err


def test_a_port_in_use_is_refused(console: Console) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        run = console.run("up", "--data", "other", "--port", str(taken.getsockname()[1]))
    assert run.status == 4
    assert "error[port_in_use]" in run.err


def test_provision_has_nothing_to_do_after_up(console: Console) -> None:
    run = console.run("provision", "--plan", "--json")
    assert (run.status, run.json["changes"], run.json["applied"]) == (0, [], False)
    more = console.run("provision", "--plan", "--json", "--capability", "search")
    assert (more.status, len(more.json["changes"])) == (1, 4)


def test_work_for_a_capability_that_nobody_offers_is_said(console: Console) -> None:
    run = console.run("submit", "nobody", "1")
    assert run.status == 0
    assert "warning" in run.err
    assert run.out.strip().startswith("~")
    found = {q["capability"]: q for q in console.run("tasks", "ls", "--json").json["queues"]}
    assert found["nobody"]["waiting"] == 1
    report = console.run("doctor", "--json")
    assert report.status == 1
    assert any(f["check"] == "unoffered" and "nobody" in f["text"] for f in report.json["findings"])
    cancelled = console.run("tasks", "cancel", run.out.strip(), "--json")
    assert (cancelled.status, cancelled.json[0]["found"]) == (0, "waiting")


def test_submit_and_wait_prints_the_result(console: Console, worker: Background) -> None:
    run = console.run("submit", "echo", '{"a": [1, null]}', "--wait")
    assert (run.status, json.loads(run.out)) == (0, {"a": [1, None]})
    assert console.run("submit", "echo", '"plain"', "--wait", "--no-warn").out == "plain\n"
    record = console.run("submit", "size", '"four"', "--wait", "--json", "--id", "size/1").json
    assert (record["status"], record["result"], record["task"]) == ("completed", 4, "size/1")
    again = console.run("submit", "size", '"longer"', "--wait", "--json", "--id", "size/1").json
    assert again == record


def test_payloads_come_from_a_file_and_from_standard_input(console: Console, worker: Background) -> None:
    (console.folder / "in.json").write_text("[1]")
    assert json.loads(console.run("submit", "echo", "@in.json", "--wait").out) == [1]
    assert json.loads(console.run("submit", "echo", "-", "--wait", text="[2]").out) == [2]


def test_large_payloads_and_results_travel_as_blobs(console: Console, worker: Background) -> None:
    text = json.dumps("y" * 1_500_000)
    record = console.run("submit", "size", "-", "--wait", "--json", text=text).json
    assert record["result"] == 1_500_000
    assert "claim_check" in record["submitted"]
    run = console.run("submit", "grow", "400000", "--wait")
    assert (run.status, len(run.out)) == (0, 400_001)


def test_a_failure_becomes_a_dead_letter_that_can_be_edited_and_run_again(console: Console, worker: Background) -> None:
    run = console.run("submit", "breaks", '"bad"', "--wait", "--id", "breaks/1")
    assert run.status == 1
    assert "error[task_failed]" in run.err
    assert "cannot take bad" in run.err
    letters = console.run("dead", "ls", "--json", "--cause", "ValueError").json
    assert [x["letter"]["task"] for x in letters] == ["breaks/1"]
    shown = console.run("dead", "show", "breaks/1", "--json").json
    assert "ValueError" in (trace := shown["letter"]["cause"]["trace"])
    assert "slot.py" not in trace
    plain = console.run("dead", "show", "breaks/1").out
    assert "cause:       ValueError" in plain
    assert plain.count("Traceback") == 1
    assert console.run("tasks", "show", "breaks/1", "--json").json["is_dead"]
    assert console.run("tasks", "watch", "breaks/1").status == 1
    done = console.run("dead", "requeue", "breaks/1", "--edit", '"fine"', "--json").json
    assert done == [{"task": "breaks/1", "requeued": "breaks/1+r1"}]
    eventually(lambda: console.run("tasks", "show", "breaks/1+r1", "--json").json["state"] == "completed")
    record = console.run("tasks", "show", "breaks/1+r1", "--json").json["record"]
    assert record["result"] == "mended"
    assert record["submitted"]["headers"]["Cb-Requeue-Of"] == "breaks/1"
    assert console.run("dead", "ls", "--json").json == []
    assert console.run("dead", "show", "breaks/1").status == 5


def test_dead_letters_are_requeued_and_discarded_in_bulk(console: Console, worker: Background) -> None:
    # what another test may have left
    console.run("dead", "discard", "--all")
    for number in range(3):
        console.run("submit", "breaks", '"bulk"', "--id", f"bulk/{number}", "--no-warn")
    eventually(lambda: len(console.run("dead", "ls", "--json").json) == 3)
    again = console.run("dead", "requeue", "--capability", "breaks", "--json").json
    assert [x["requeued"] for x in again] == [f"bulk/{n}+r1" for n in range(3)]
    eventually(lambda: len(console.run("dead", "ls", "--json").json) == 3)
    gone = console.run("dead", "discard", "--all", "--json").json
    assert sorted(gone["discarded"]) == [f"bulk/{n}+r1" for n in range(3)]
    assert console.run("dead", "ls", "--json").json == []


def test_watch_shows_progress_from_the_beginning(console: Console, worker: Background) -> None:
    task = console.run("submit", "steps", "4", "--json").json["task"]
    run = console.run("tasks", "watch", task, "--json")
    assert run.status == 0
    stages = [line["progress"]["stage"] for line in run.lines if line["event"] == "progress"]
    assert stages == [f"step {n}" for n in range(4)]
    assert run.lines[-1]["record"]["result"] == 4


def test_a_running_task_is_found_and_cancelled(console: Console, worker: Background) -> None:
    console.run("submit", "nap", '{"name": "long", "seconds": 60}', "--id", "nap/long", "--no-warn")
    eventually(lambda: console.marks("start long"))
    shown = console.run("tasks", "show", "nap/long", "--json").json
    assert shown["state"] == "running"
    assert shown["workers"] == [worker.events[0]["worker"]]
    done = console.run("tasks", "cancel", "nap/long", "--json", "--reason", "enough")
    assert (done.status, done.json) == (0, [{"task": "nap/long", "found": "running"}])
    record = console.run("tasks", "show", "nap/long", "--json").json["record"]
    assert (record["status"], record["error"]["message"]) == ("cancelled", "enough")
    assert console.run("tasks", "cancel", "nap/long").status == 1


def test_pause_holds_work_back_and_resume_lets_it_go(console: Console, worker: Background) -> None:
    assert console.run("pause", "echo", "--reason", "new index", "--json").json["paused"]
    paused = [c["is_paused"] for w in _workers(console) for c in w["capabilities"] if c["name"] == "echo"]
    assert paused == [True]
    task = console.run("submit", "echo", "7", "--json").json["task"]
    late = console.run("submit", "echo", "8", "--wait", "--timeout", "0.5s")
    assert (late.status, "error[task_timeout]" in late.err) == (6, True)
    assert console.run("tasks", "show", task, "--json").json["state"] == "waiting"
    queues = console.run("tasks", "ls", "--json").json["queues"]
    assert [queue["paused"] for queue in queues if queue["capability"] == "echo"] == ["new index"]
    held = [f for f in console.run("doctor", "--json").json["findings"] if f["check"] == "paused"]
    assert [(f["level"], "echo" in f["text"], "new index" in f["text"]) for f in held] == [("warning", True, True)]
    assert not console.run("resume", "echo", "--json").json["paused"]
    eventually(lambda: console.run("tasks", "show", task, "--json").json["state"] == "completed")


def _workers(console: Console) -> list[dict[str, list[dict[str, object]]]]:
    found: list[dict[str, list[dict[str, object]]]] = console.run("workers", "ls", "--json").json["workers"]
    return found


def test_workers_are_listed_and_resized(console: Console, worker: Background) -> None:
    name = worker.events[0]["worker"]
    run = console.run("workers", "scale", name, "3", "--slots", "echo", "--json")
    assert run.json == {"workers": [name], "capability": "echo", "slots": 3}
    found = console.run("workers", "ls", "--json").json["workers"][0]
    assert (found["worker"], found["labels"]) == (name, {"zone": "a"})
    assert next(c["slots"] for c in found["capabilities"] if c["name"] == "echo") == 3
    assert console.run("workers", "scale", name, "3", "--slots", "unknown").status == 5
    assert console.run("workers", "drain", "nobody-1").status == 5


def test_later_and_recurring_tasks_are_planned_listed_and_removed(console: Console, worker: Background) -> None:
    assert console.run("schedule", "add", "nightly", "echo", "1", "--cron", "30 3 * * *", "--json").status == 0
    assert console.run("schedule", "add", "pulse", "echo", '"tick"', "--every", "1s", "--json").status == 0
    assert console.run("schedule", "add", "once", "echo", "2", "--at", "1h", "--json").status == 0
    rules = {x["name"]: (x["rule"], x["capability"]) for x in console.run("schedule", "ls", "--json").json}
    assert rules["nightly"] == ("0 30 3 * * *", "echo")
    assert rules["pulse"][0] == "@every 1s"
    assert console.run("tasks", "show", "once", "--json").json["state"] == "scheduled"
    eventually(lambda: _ticks(console) >= 2)
    for name in ("nightly", "pulse", "once"):
        assert console.run("schedule", "rm", name, "--json").json == {"removed": name}
    assert console.run("schedule", "ls", "--json").json == []
    assert console.run("schedule", "rm", "pulse").status == 5


def _ticks(console: Console) -> int:
    entries = console.run("audit", "tail", "--json", "--capability", "echo").lines
    return sum(1 for entry in entries if entry["result"] and entry["result"]["result"] == "tick")


def test_a_delayed_task_runs_later(console: Console, worker: Background) -> None:
    run = console.run("submit", "echo", "5", "--delay", "1s", "--wait", "--json")
    assert (run.status, run.json["result"]) == (0, 5)


def test_a_deadline_in_the_past_is_refused(console: Console) -> None:
    run = console.run("submit", "echo", "1", "--deadline", "2020-01-01T00:00:00Z")
    assert run.status == 2
    assert "error[deadline]" in run.err


def test_an_unknown_task_is_status_5(console: Console) -> None:
    for command in ("show", "watch", "cancel"):
        run = console.run("tasks", command, "no/such")
        assert run.status == 5
        assert "error[task_not_found]" in run.err


def test_the_ledger_is_read_filtered_and_exported(console: Console, worker: Background) -> None:
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    for number in range(3):
        args = ("--id", f"audit/{number}", "--header", f"traceparent:00-{trace}-00f067aa0ba902b7-01")
        console.run("submit", "echo", str(number), "--wait", "--no-warn", *args)
    found = console.run("audit", "tail", "--correlation", trace, "--json").lines
    assert [entry["task"] for entry in found] == ["audit/0", "audit/1", "audit/2"]
    two = console.run("tasks", "ls", "--json", "--limit", "2", "--capability", "echo").json
    assert [x["task"] for x in two["finished"]] == ["audit/2", "audit/1"]
    page = console.run("tasks", "ls", "--json", "--limit", "1", "--before", str(two["next"])).json
    assert [x["task"] for x in page["finished"]] == ["audit/0"]
    rows = console.run("audit", "export", "--format", "csv", "--correlation", trace).out.splitlines()
    assert rows[0].startswith("seq,stored_at,kind,task")
    assert len(rows) == 4
    log = console.run("log", "--correlation", trace, "--json").lines
    assert {line["subject"] for line in log} == {f"cb.result.echo.audit%2F{n}" for n in range(3)}
    assert console.run("log", "--task", "audit/1", "--json").lines[0]["body"]["result"] == 1
    assert console.run("log", "--agent", "billing/42", "--json").out == ""


def test_audit_tail_follows_until_it_is_interrupted(console: Console, worker: Background) -> None:
    tail = console.start("audit", "tail", "--limit", "0", "--follow", "--json", "--capability", "echo")
    eventually(lambda: console.run("submit", "echo", '"seen"', "--wait").status == 0 and tail.out)
    assert tail.stop(2) == 130
    assert not any("Traceback" in line for line in tail.err)


def test_the_server_is_found_from_its_folder_and_only_from_there(console: Console) -> None:
    assert console.run("tasks", "ls", "--json", CALLBOARD_NATS__URL="nats://127.0.0.1:9").status == 3
    assert console.run("tasks", "ls", "--json").status == 0


def test_a_pipe_that_closes_early_is_no_error(console: Console, worker: Background) -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as closed:
        import subprocess
        import sys

        done = subprocess.run(
            [sys.executable, "-m", "callboard", "audit", "export"],
            cwd=console.folder,
            env=console.env,
            stdout=closed,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert "Traceback" not in done.stderr


@pytest.mark.usefixtures("worker")
def test_history_is_sent_again_onto_a_subject_of_ones_own(console: Console) -> None:
    assert console.run("submit", "echo", "1", "--wait").status == 0
    run = console.run("replay", "to", "history.{subject}", "--subject", "cb.result.>", "--rate", "5000", "--json")
    assert run.status == 0
    assert run.json["messages"] > 0
    refused = console.run("replay", "to", "cb.task.search")
    assert refused.status == 2
    assert "a replay must have no effect" in refused.err
