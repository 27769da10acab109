"""Every shell command of docs/deploy.md: run here where it can be, checked against the tool's own help where not.

What is neither is named in ``NOT_RUN`` with its reason, and printed; a new command in the guide falls under none of
these and fails.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.support.server import NatsServer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "deploy.md").read_text("utf-8")
HEREDOC = re.compile(r"^cat > (\S+) <<'END'\n(.*?)^END\n", re.MULTILINE | re.DOTALL)
FLAG = re.compile(r"--[a-z][a-z-]+")

# Beginnings of commands that change the machine or need a service that is not here.
NOT_RUN = {
    "helm ": "the chart comes from the network; tests/deploy/test_nats_files.py checks the values",
    "python3 -m venv": "makes /opt/callboard",
    "/opt/callboard/bin/python -m pip": "needs a package registry",
    "python3 -m pip download": "needs a package registry",
    "useradd ": "makes a user of the machine",
    "systemctl ": "needs systemd",
    "install -d ": "makes folders of the machine",
    "echo NATS_NAME": "writes below /etc",
}
# By which name the guide calls a server, and the client's settings of a cluster that is not here.
FAR = ("tls://localhost:4222",)


def commands() -> list[str]:
    """Return the commands of all shell blocks in order; lines that go on are joined, files written inline left out."""
    found: list[str] = []
    for block in re.findall(r"^```sh\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL):
        text = HEREDOC.sub("", block).replace("\\\n", " ")
        found += [part.strip() for line in text.splitlines() for part in line.split("&&") if part.strip()]
    return found


class Runner:
    """Runs the guide's commands in a folder, one after the other, as a reader would."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self.url = url
        tools = folder / "bin"
        tools.mkdir()
        (tools / "callboard").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m callboard "$@"\n')
        (tools / "callboard").chmod(0o755)
        self.env = os.environ | {"PYTHONPATH": str(ROOT / "src"), "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"}
        self.base = ""

    def callboard(self, line: str) -> str:
        """Run a command of ours and return what it printed; a far server is asked for by settings alone."""
        line = line.split(" | ", maxsplit=1)[0].replace("/opt/callboard/bin/callboard", "callboard")
        line = line.replace("nats://127.0.0.1:4222", self.url)
        allowed = {0}
        if any(far in line for far in FAR):
            line = line.replace(" doctor", " config show")
        if "/etc/callboard" in line:
            # three copies on three servers: here the plan for them is read, which says that streams are to be made
            line = f"{line.replace('/etc/callboard', 'etc')} --plan --nats {self.url}"
            allowed = {1}
        done = subprocess.run(
            ["bash", "-c", f"{self.base}\n{line}"],
            cwd=self.folder,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
        assert done.returncode in allowed, f"{line}\n{done.stdout}{done.stderr}"
        return done.stdout

    def check(self, line: str) -> str:
        """Check one command and return how."""
        words = shlex.split(line.rsplit(" | ", maxsplit=1)[-1].removesuffix("&"))
        if re.fullmatch(r"\w+=\S+", line):
            self.base = line
            return "kept"
        if line.startswith(("callboard ", "/opt/callboard/bin/callboard ")):
            if " | " in line:
                check_tool(words)
            self.callboard(line)
            if any(far in line for far in FAR):
                return "run, but as `config show`: its servers are not here"
            return "run, but with --plan: one server is here, not three" if "/etc/callboard" in line else "run"
        if words[0] in {"kubectl", "docker"}:
            check_files(words)
            return check_tool(words)
        if words[0] == "install" and words[1] == "-m":
            sources = [word for word in words[3:-1] if not word.startswith("$")]
            assert all((ROOT / source).exists() for source in sources), line
            return "files are there" if sources else "not run: takes a program of the machine"
        reason = next((why for start, why in NOT_RUN.items() if line.startswith(start)), None)
        assert reason is not None, f"nobody knows how to check this command of the guide: {line}"
        return f"not run: {reason}"


def check_files(words: list[str]) -> None:
    """Look that every file of the repository that a command names is there."""
    for option, name in itertools.pairwise(words):
        if option in {"-f", "-k"} and name != "-":
            path = ROOT / name
            assert (path / "kustomization.yaml").exists() if option == "-k" and "…" not in name else path.exists(), name


def check_tool(words: list[str]) -> str:
    """Look that a tool's own help knows a command's options; needs neither a cluster nor an engine."""
    if shutil.which(words[0]) is None:
        return f"not run: {words[0]} is not installed here"
    known = helped(words[0], [])
    path: list[str] = []
    # of an option's value nothing is asked, and what follows the subcommand is names
    plain = [word for before, word in itertools.pairwise(words) if before not in {"-n", "-l", "-f", "-k", "-t"}]
    for word in (word for word in plain if re.fullmatch(r"[a-z][a-z-]+", word)):
        text = helped(words[0], [*path, word])
        if not text or len(path) == 3:
            break
        path.append(word)
        known += text
    if not path:
        return f"not run: {words[0]} has no help for it here"
    end = words.index("--", 1) if "--" in words else len(words)
    missing = [flag for word in words[:end] for flag in FLAG.findall(word.split("=")[0]) if flag not in known]
    assert not missing, f"{words[0]} {' '.join(path)} has no {missing}"
    return "options checked"


def helped(tool: str, path: list[str]) -> str:
    command = [tool, "options"] if tool == "kubectl" and not path else [tool, *path, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    text = done.stdout + done.stderr
    # a tool that lacks the subcommand may answer with the help of itself
    return text if done.returncode == 0 and (not path or " ".join([tool, *path]) in text) else ""


@pytest.fixture
def runner(tmp_path: Path) -> Iterator[Runner]:
    """A folder as a reader has it, a server where the guide has one, and a worker that serves ``hello``."""
    for name in ("deploy", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    for target, content in HEREDOC.findall(GUIDE):
        file = tmp_path / target.lstrip("/").replace("etc/callboard", "etc")
        file.parent.mkdir(exist_ok=True)
        file.write_text(content)
    server = asyncio.run(NatsServer(tmp_path / "server").start())
    found = Runner(tmp_path, server.url)
    sizes = {f"CALLBOARD_TOPOLOGY__{name}_MAX_BYTES": str(16 << 20) for name in ("QUEUE", "LEDGER", "AUDIT", "DEAD")}
    found.env |= sizes
    found.callboard(f"callboard --nats {server.url} provision --capability hello")
    # the code that the overlay's ConfigMap brings
    for name, code in yaml.safe_load((ROOT / "deploy/k8s/base/code.yaml").read_text("utf-8"))["data"].items():
        (tmp_path / name).write_text(code)
        module = name
    command = [sys.executable, "-m", "callboard", "--nats", server.url, "worker", "start", module]
    with (tmp_path / "worker.log").open("wb") as log:
        worker = subprocess.Popen(command, cwd=tmp_path, env=found.env, stdout=log, stderr=log)
    yield found
    worker.terminate()
    worker.wait(60)
    server.stop()


def test_every_command_of_the_guide_is_run_or_checked(runner: Runner) -> None:
    done = {line: runner.check(line) for line in commands()}
    for line, how in done.items():
        print(f"{how:16} {line}")  # noqa: T201 - what was not run, and why, belongs into the output
    assert sum(how == "run" for how in done.values()) >= 5, done


def test_a_wrong_command_in_the_guide_is_caught(runner: Runner) -> None:
    for wrong in (
        "callboard k8s render --pool gpu --cabability embed --out pools/other",
        "kubectl apply -k deploy/k8s/overlays/nowhere",
        "install -m 644 deploy/systemd/other.service /etc/systemd/system/",
        "frobnicate --now",
    ):
        with pytest.raises(AssertionError):
            runner.check(wrong)
    if shutil.which("kubectl"):
        with pytest.raises(AssertionError, match="--forsure"):
            check_tool(shlex.split("kubectl -n callboard delete job -l a=b --forsure"))
