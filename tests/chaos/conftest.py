"""A scratch folder for each chaos run, outside the repository."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return where the server's store and the journals go."""
    return tmp_path
