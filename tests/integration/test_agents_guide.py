"""What docs/agents.md shows works as it stands there."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from callboard.agents import catalog
from callboard.runtime.loader import load_module

GUIDE = Path(__file__).parents[2] / "docs" / "agents.md"


@pytest.fixture
def guide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The Python of the page, as one module."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    blocks = re.findall(r"^```python\n(.*?)^```", GUIDE.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) == 3
    path = tmp_path / "agents_guide.py"
    path.write_text("\n\n".join(blocks), "utf-8")
    yield load_module(str(path))
    del sys.modules["agents_guide"]


async def test_the_estimator_measures_and_estimates(guide: Any) -> None:  # noqa: ANN401 - a module that exists only here
    found = await guide.estimate()
    assert (found.status, found.output["litres"], found.turns) == ("done", 1.5, 2)


def test_the_classes_say_what_the_page_says(guide: Any) -> None:  # noqa: ANN401 - as above
    shown = catalog.describe(guide.Estimator)
    assert (shown.models, shown.tools, shown.output) == (("openai/gpt-4o-mini",), ("area",), "Estimate")
    assert set(catalog.describe(guide.Careful).messages) == {"Task", "Question"}
