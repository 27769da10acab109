"""The names a user may import from `callboard`; taking one away is a breaking change."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import callboard

PINNED = Path(__file__).parent / "public_api.txt"


def _public() -> list[str]:
    """Return what `__all__` says, or what is there that is neither private nor a module."""
    declared: list[str] | None = getattr(callboard, "__all__", None)
    if declared is not None:
        return sorted(declared)
    return sorted(
        name
        for name, value in vars(callboard).items()
        if not name.startswith("_") and not isinstance(value, ModuleType) and name != "annotations"
    )


def test_public_names_are_pinned() -> None:
    lines = PINNED.read_text("utf-8").splitlines()
    assert _public() == sorted(line for line in lines if line and not line.startswith("#"))


def test_every_public_name_is_there() -> None:
    assert [name for name in _public() if not hasattr(callboard, name)] == []


def test_importing_callboard_imports_nothing_heavy() -> None:
    heavy = ["pydantic", "pydantic_settings", "structlog", "prometheus_client", "rich", "httpx", "litellm"]
    code = f"import sys, callboard; sys.exit(', '.join(sorted(set({heavy!r}) & set(sys.modules))))"
    run = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert run.stderr.strip() == ""
