"""Commands that need no server, and what is said when there is none."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from callboard.cli.main import COMMANDS, cli
from callboard.cli.session import Session
from tests.acceptance.console import SRC, Console

HEAVY = ("nats", "pydantic", "httpx", "structlog", "rich", "asyncio", "msgspec", "yaml", "uvloop", "prometheus_client")


@pytest.fixture
def console(tmp_path: Path) -> Iterator[Console]:
    found = Console(tmp_path)
    yield found
    found.close()


def _paths(command: click.Command, path: tuple[str, ...], ctx: click.Context) -> Iterator[tuple[str, ...]]:
    yield path
    if isinstance(command, click.Group):
        for name in command.list_commands(ctx):
            found = command.get_command(ctx, name)
            assert found is not None
            yield from _paths(found, (*path, name), ctx)


ALL = list(_paths(cli, (), click.Context(cli, obj=Session())))


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_every_command_explains_itself(path: tuple[str, ...]) -> None:
    result = CliRunner().invoke(cli, [*path, "--help"], obj=Session())
    assert result.exit_code == 0, result.output
    assert "Usage:" in result.output


@pytest.mark.parametrize("path", [path for path in ALL if len(path) > 0], ids=" ".join)
def test_every_leaf_shows_an_example_or_needs_none(path: tuple[str, ...]) -> None:
    command: click.Command | None = cli
    for name in path:
        assert isinstance(command, click.Group)
        command = command.get_command(click.Context(cli), name)
    assert command is not None
    if isinstance(command, click.Group) or command.hidden or path == ("version",):
        return
    assert "Example:" in (command.epilog or "")


def test_help_imports_nothing_heavy_and_is_fast(record_property: Callable[[str, object], None]) -> None:
    code = (
        "import sys, time; t = time.perf_counter();"
        "from callboard.cli.main import cli;"
        "cli.main(['--help'], standalone_mode=False, prog_name='callboard');"
        f"print(round(time.perf_counter() - t, 3), sorted(set({HEAVY!r}) & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": str(SRC)}, capture_output=True, text=True, check=True
    )
    record_property("help_s", done.stderr.split()[0])
    sys.stdout.write(f"callboard --help: {done.stderr.split()[0]} s in the process\n")
    assert all(name in done.stdout for name in COMMANDS)
    assert done.stderr.rstrip().endswith("[]")


def test_plain_commands_write_json(console: Console) -> None:
    assert set(console.run("version", "--json").json) == {"callboard", "python"}
    shown = console.run("config", "show", "--json", CALLBOARD_WORKER__CONCURRENCY="5").json
    values = {line["key"]: (line["value"], line["origin"]) for line in shown}
    assert values["worker.concurrency"][0] == "5"
    assert "env" in values["worker.concurrency"][1]
    for kind in ("record", "attempt", "dead", "beat", "progress"):
        assert "$defs" in console.run("schema", kind).json


def test_a_secret_is_not_shown(console: Console) -> None:
    env = {"CALLBOARD_NATS__USER": "u", "CALLBOARD_NATS__PASSWORD": "hunter2"}
    assert "hunter2" not in console.run("config", "show", "--origin", **env).out


def test_init_writes_a_capability_and_keeps_what_exists(console: Console) -> None:
    assert console.run("init", "--yes", "--json").json == {"written": ["callboard.yaml", "hello.py"], "kept": []}
    assert console.run("init", "--yes", "--json").json["kept"] == ["callboard.yaml", "hello.py"]
    assert console.run("config", "show", "--json").status == 0


def test_completion_prints_a_script(console: Console) -> None:
    assert "_CALLBOARD_COMPLETE" in console.run("completion", "bash").out


@pytest.mark.parametrize(
    ("args", "status", "said"),
    [
        (["taks", "ls"], 2, "Did you mean 'tasks'"),
        (["tasks", "ls", "--status", "good"], 2, "good"),
        (["submit", "Search!", "{}"], 2, "error[invalid_name]"),
        (["submit", "search", "{not json"], 2, "error[decode]"),
        (["submit", "search", "NaN"], 2, "error[decode]"),
        (["submit", "search", "@missing.json"], 2, "error[input]"),
        (["tasks", "ls", "--since", "yesterday"], 2, "yesterday"),
        (["--config", "missing.yaml", "config", "show"], 2, "error[config]"),
        (["worker", "start", "nothere"], 2, "error[module_load]"),
        (["worker", "start", "gone.py"], 2, "gone.py does not exist"),
        (["schedule", "add", "x", "echo"], 2, "--every"),
        (["dead", "requeue"], 2, "--capability"),
    ],
)
def test_bad_input_gets_one_clear_line(console: Console, args: list[str], status: int, said: str) -> None:
    run = console.run(*args)
    assert run.status == status, run.err
    assert said in run.err
    assert "Traceback" not in run.err
    assert run.out == ""


def test_a_module_that_does_not_import_is_named_with_its_line(console: Console) -> None:
    (console.folder / "bad.py").write_text("x = 1\nraise RuntimeError('no database')\n")
    for args in (["bad.py"], ["bad"], ["bad.py", "--processes", "2"]):
        run = console.run("worker", "start", *args)
        assert run.status == 2
        assert "error[module_load]" in run.err
        assert "RuntimeError: no database" in run.err
        assert "line 2" in run.err
        assert run.err.count("error[module_load]") == 1


def test_a_module_without_a_capability_says_so(console: Console) -> None:
    (console.folder / "empty.py").write_text("x = 1\n")
    run = console.run("worker", "start", "empty.py")
    assert run.status == 2
    assert "@capability" in run.err


@pytest.mark.parametrize("args", [["submit", "echo", "1"], ["tasks", "ls"], ["dead", "ls"], ["audit", "tail"]])
def test_a_server_that_is_not_there_is_status_3(console: Console, args: list[str]) -> None:
    run = console.run(*args, "--nats", "nats://127.0.0.1:9")
    assert run.status == 3
    assert "error[bus_connect]" in run.err
    assert "Traceback" not in run.err


def test_doctor_says_that_nothing_listens_and_what_to_do(console: Console) -> None:
    run = console.run("doctor", "--json", "--bundle", "--nats", "nats://127.0.0.1:9")
    assert run.status == 1
    problem = next(found for found in run.json["findings"] if found["level"] == "problem")
    assert "nothing listens" in problem["text"]
    assert "callboard up" in problem["fix"]
    bundle = json.loads((console.folder / "callboard-doctor.json").read_text())
    assert bundle["packages"]["msgspec"]


def test_the_schema_of_an_actors_messages_and_state_is_printed(console: Console) -> None:
    hello = Path(__file__).parents[2] / "examples" / "hello.py"
    (console.folder / "hello.py").write_text(hello.read_text())
    found = console.run("schema", "hello.py").json["greeter"]
    assert found["messages"]["Ask"]["schema"]["$defs"]["Ask"]["required"] == ["text"]
    assert found["state"]["$defs"]["State"]["properties"]["turns"]["default"] == 0
    run = console.run("schema", "nothing")
    assert run.status == 2
    assert "neither a .py file" in run.err
