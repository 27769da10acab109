"""No file of the repository holds a key: a scan for the forms that keys have."""

from __future__ import annotations

import re

import pytest

from tests.unit.test_layout import FILES, ROOT

# Forms of keys that are given out, with what must stand around them.
KEYS = re.compile(
    r"-----BEGIN (?:[A-Z]+ )?PRIVATE KEY-----\s+[A-Za-z0-9+/]{32}"
    r"|\bAKIA[0-9A-Z]{16}\b|\bgh[pousr]_[A-Za-z0-9]{36}\b|\bgithub_pat_\w{60,}\b|\bxox[abprs]-[\w-]{20,}"
    r"|\bsk-(?:ant-|proj-)?[A-Za-z0-9_-]{32,}|\bAIza[\w-]{35}\b|\bS[UAOCN][A-Z2-7]{56}\b|\beyJ[\w-]{20,}\.eyJ[\w-]{20,}\.[\w-]{20,}"
)


def _scan(text: str) -> list[str]:
    return [found[:12] + "…" for found in KEYS.findall(text)]


def test_no_file_holds_a_key() -> None:
    found = {}
    for path in FILES:
        name = path.relative_to(ROOT).as_posix()
        # tests plant fakes, to see that they are taken out of logs
        if name.startswith("tests/"):
            continue
        try:
            keys = _scan(path.read_text("utf-8"))
        except UnicodeDecodeError:
            continue
        if keys:
            found[name] = keys
    assert found == {}


@pytest.mark.parametrize(
    "fake",
    [
        "AKIA" + "A1" * 8,
        "ghp_" + "a1" * 18,
        "sk-" + "ant-" + "a1" * 20,
        "SU" + "A2" * 28,
        "-----BEGIN " + "PRIVATE KEY-----\n" + "ab" * 20,
        "xox" + "b-" + "1" * 24,
    ],
)
def test_the_scan_sees_a_key(fake: str) -> None:
    """Negative control."""
    assert _scan(f"token = '{fake}'")
