"""A tool that runs Python code of a model: in the agent's sandbox, and nowhere else."""

from __future__ import annotations

from typing import Final

from callboard.agents.sandbox.base import Job, Ran
from callboard.agents.tools.context import ToolContext
from callboard.agents.tools.decorator import tool

_STREAM_CHARS = 12_000


@tool(category="python", action="execute", repeatable=False, timeout_s=120, trust="sandboxed")
async def run_python(code: str, context: ToolContext) -> str:
    """Run a Python program and return what it prints. It starts in the agent's folder and has no network.

    Args:
        code: The whole program.
    """
    sandbox = context.need_sandbox()
    folder = context.need_folder()
    await sandbox.check()
    # isolated: neither the folder it starts in nor variables decide what it imports
    job = Job(argv=("python3", "-I", "-"), folder=folder, input=code.encode(), label=context.key)
    return _told(await sandbox.run(job))


PYTHON: Final = (run_python,)


def _told(ran: Ran) -> str:
    parts = [_stream(ran.stdout)]
    if ran.stderr:
        parts.append(f"[standard error]\n{_stream(ran.stderr)}")
    if ran.limit:
        parts.append(f"[ended: it went over its limit of {ran.limit}]")
    elif ran.status:
        parts.append(f"[exit status {ran.status}]")
    if ran.is_cut:
        parts.append("[cut: it printed more]")
    return "\n".join(part for part in parts if part) or "[no output]"


def _stream(data: bytes) -> str:
    text = data.decode("utf-8", "replace").rstrip()
    return text if len(text) <= _STREAM_CHARS else f"{text[:_STREAM_CHARS]}\n[cut]"
