"""Try the ways out of a sandbox: what they are after, the attempt inside, and the same attempt without a sandbox."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from msgspec import Struct, structs

from callboard.agents.contract.sandbox import survivors
from callboard.agents.errors import SandboxMissingError
from callboard.agents.sandbox.base import Job, Limits, Ran, Sandbox
from tests.support.escapes import LIMITS, PRELUDE, Escape, Outcome

CANARY = "CB_TEST_CANARY"
_CONTROL_S = 60.0


class Stage(Struct, frozen=True, kw_only=True):
    """What an escape is after: a file, listeners, a process, a secret in this process's environment.

    Attributes:
        folder: The folder of the sandbox; belongs to whoever may write it there.
        facts: What a program is told.
        victim: A process of the same user.
        names: Words in the arguments of a process that stays behind.
    """

    folder: Path
    facts: dict[str, object]
    victim: subprocess.Popen[bytes]
    daemon: str


@contextlib.contextmanager
def stage(root: Path) -> Iterator[Stage]:
    """Set it up; nothing is left afterwards."""
    folder, outside = root / "folder", root / "outside"
    folder.mkdir()
    outside.mkdir()
    (outside / "secret").write_text("secret", "utf-8")
    token = secrets.token_hex(8)
    canary = f"canary-{token}"
    os.environ[CANARY] = canary
    daemon = f"daemon-{token}"
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        for address in (f"{root}/s", f"\0{token}"):
            found = stack.enter_context(socket.socket(socket.AF_UNIX))
            found.bind(address)
            found.listen()
        waits = [sys.executable, "-c", "import signal; signal.pause()", f"victim-{token}"]
        # With the secret in its environment, and of the same user.
        victim = subprocess.Popen(waits)
        try:
            yield Stage(
                folder=folder,
                facts={
                    "outside": str(outside / "secret"),
                    "canary": canary,
                    "worker": os.getpid(),
                    "victim": victim.pid,
                    "marker": f"victim-{token}",
                    "port": listener.getsockname()[1],
                    "unix": f"{root}/s",
                    "abstract": token,
                    "daemon": daemon,
                },
                victim=victim,
                daemon=daemon,
            )
        finally:
            del os.environ[CANARY]
            victim.kill()
            victim.wait()
            for pid in survivors(daemon):
                os.kill(pid, 9)


async def attempt(sandbox: Sandbox, escape: Escape, stage: Stage, *, python: str) -> tuple[Outcome, Ran]:
    """Try a way out of a sandbox; tell what became of it."""
    limits = structs.replace(LIMITS, **escape.limits)
    facts = {**stage.facts, "amount": escape.amount, **_sizes(limits)}
    argv = [python, "-c", PRELUDE + escape.code, json.dumps(facts)]
    ran = await sandbox.run(Job(argv=argv, folder=stage.folder, limits=limits, label="escape"))
    assert b"BEGAN" in ran.stdout, ran
    if b"ESCAPED" in ran.stdout or len(ran.stdout) > limits.output_bytes or survivors(stage.daemon):
        return "NOT PREVENTED", ran
    is_daemon = "daemon" in escape.name and ran.status == 0
    return ("contained" if ran.limit or ran.is_cut or is_daemon else "prevented"), ran


async def got_through(escape: Escape, stage: Stage) -> tuple[bool, str]:
    """Try the same without a sandbox, where it has to work; tell whether it does, and what was said."""
    facts = {**stage.facts, "amount": escape.control, **_sizes(LIMITS)}
    argv = [sys.executable, "-c", PRELUDE + escape.code, json.dumps(facts)]
    process = await asyncio.create_subprocess_exec(
        *argv, cwd=stage.folder, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await asyncio.wait_for(process.communicate(), _CONTROL_S)
    does_flood = "flood" in escape.name and len(out) > LIMITS.output_bytes
    is_through = b"ESCAPED" in out or does_flood or bool(survivors(stage.daemon))
    return is_through, err.decode(errors="replace")[-500:]


def clear(stage: Stage) -> None:
    """Empty the folder for the next attempt."""
    for each in stage.folder.iterdir():
        shutil.rmtree(each) if each.is_dir() and not each.is_symlink() else each.unlink()


async def missing(sandbox: Sandbox) -> str:
    """Return why a sandbox does not work here; "" if it does."""
    try:
        await sandbox.check()
    except SandboxMissingError as error:
        return str(error)
    return ""


def _sizes(limits: Limits) -> dict[str, object]:
    return {"memory_bytes": limits.memory_bytes, "file_bytes": limits.file_bytes}
