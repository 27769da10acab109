"""Each sandbox against each way out: ``python -m tests.integration.sandbox_table`` prints the table and surprises.

As root it starts a Docker engine of its own; sandboxes that are not here are left out, and why is printed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import tempfile
from pathlib import Path

from callboard.agents.sandbox.choose import LEVELS, choose
from callboard.agents.sandbox_settings import DockerSettings, SandboxSettings
from tests.support import engine
from tests.support.escapes import ESCAPES, table
from tests.support.trial import attempt, clear, got_through, missing, stage


async def run(settings: SandboxSettings) -> tuple[list[str], list[str]]:
    """Return the lines of the table, and what is not as it should be."""
    outcomes: dict[tuple[str, str], str] = {}
    surprises = []
    for name in LEVELS:
        sandbox = choose(name, settings)
        with tempfile.TemporaryDirectory() as root:
            if reason := await missing(sandbox):
                surprises.append(f"SKIP {name}: {reason}")
                continue
            for n, escape in enumerate(ESCAPES):
                place = Path(root, str(n))
                place.mkdir()  # noqa: ASYNC240 - one thing at a time
                with stage(place) as found:
                    if name == "docker" and os.geteuid() == 0:
                        os.chown(found.folder, 65534, 65534)
                    python = engine.PYTHON if name == "docker" else sys.executable
                    outcome, ran = await attempt(sandbox, escape, found, python=python)
                    outcomes[escape.name, name] = outcome
                    if not escape.is_as_wanted(name, outcome):
                        said = ran.stderr.decode(errors="replace").strip()[-200:]
                        surprises.append(f"{name}: {escape.name}: {outcome} ({ran.status} {ran.limit} {said})")
        await sandbox.close()
    return table(outcomes), surprises


async def controls() -> list[str]:
    """Return what does not work without a sandbox either, so that its row proves nothing."""
    found = []
    with tempfile.TemporaryDirectory() as root:
        for n, escape in enumerate(ESCAPES):
            Path(root, str(n)).mkdir()  # noqa: ASYNC240 - one thing at a time
            with stage(Path(root, str(n))) as place:
                is_through, said = await got_through(escape, place)
                if not is_through:
                    found.append(f"without a sandbox {escape.name!r} fails too: {said.strip()[-200:]}")
                clear(place)
    return found


def main() -> None:
    """Print it all."""
    with contextlib.ExitStack() as stack:
        docker = DockerSettings()
        with contextlib.suppress(engine.EngineRefused):
            docker = DockerSettings(url=stack.enter_context(engine.engine()).url, image=engine.IMAGE)
        lines, surprises = asyncio.run(run(SandboxSettings(docker=docker)))
    for line in [*lines, *surprises, *asyncio.run(controls())]:
        print(line)  # noqa: T201 - what it is for
    sys.exit(any(not line.startswith("SKIP") for line in surprises))


if __name__ == "__main__":
    main()
