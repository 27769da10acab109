"""The report in a real browser: it opens from a file, reports no errors, and draws its cards."""

from __future__ import annotations

import re
import shutil
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from callboard.agents.digest.digest import digest_bytes
from callboard.agents.digest.ledger import Held, Kill, Record, account
from callboard.agents.digest.merge import merge
from callboard.agents.digest.report import Run, write_report
from callboard.agents.digest.walk import walk

SOURCES = Path(__file__).parents[2] / "src" / "callboard"
HOSTILE = "</script><script>console.error('owned')</script><img src=x onerror=console.error('owned')>"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
    "--enable-logging=stderr", "--v=0", "--virtual-time-budget=3000",
)  # fmt: skip


def _browse(page: Path, tmp_path: Path, *flags: str) -> tuple[str, list[str]]:
    """Return what the browser wrote and the messages of the page's console."""
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine (apt-get install chromium): the page was not opened")
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", *flags, page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
    if done.returncode:
        pytest.skip(f"chromium does not run here: {done.stderr.strip()[-300:]}")
    return done.stdout, re.findall(r"CONSOLE.*", done.stderr)


@pytest.fixture
def page(tmp_path: Path) -> Path:
    """Write a report of sixty of our own sources, more than are drawn at once, and a hostile file, with a kill."""
    start = datetime(2026, 11, 21, 9, 30, tzinfo=UTC)
    digests = [digest_bytes(file.path, (SOURCES / file.path).read_bytes()) for file in walk(SOURCES).files[:60]]
    digests.append(
        digest_bytes(f"{HOSTILE}.md", f"# {HOSTILE}\n\nA sentence of six words {HOSTILE} stands here.\n".encode())
    )
    corpus = merge(digests)
    paths = [digest.path for digest in corpus.digests]
    records = [
        Record(
            task=path, capability="digest", status="completed", worker=f"w{n % 2}",
            claimed_at=start + timedelta(seconds=n / 10), finished_at=start + timedelta(seconds=n / 10 + 0.15),
        )
        for n, path in enumerate(paths)
    ]  # fmt: skip
    kill = Kill(worker="w9", at=start + timedelta(seconds=1), held=[Held(task=paths[-1])])
    run = Run(folder="callboard", started_at=start, finished_at=start + timedelta(seconds=len(paths) / 10 + 1))
    return write_report(
        tmp_path / "report", corpus, account(paths, records, kill=kill, workers=["w0", "w1", "w9"]), run
    ).html


def test_the_page_opens_from_a_file_without_a_console_message(page: Path, tmp_path: Path) -> None:
    _, messages = _browse(page, tmp_path, f"--screenshot={tmp_path / 'wide.png'}", "--window-size=1280,1600")
    assert messages == []
    assert (tmp_path / "wide.png").stat().st_size > 20_000


def test_a_page_with_an_error_is_noticed(page: Path, tmp_path: Path) -> None:
    """Negative control: the check above can fail."""
    broken = page.with_name("broken.html")
    broken.write_text(page.read_text(encoding="utf-8").replace('"use strict";', "nonsense();"), encoding="utf-8")
    _, messages = _browse(broken, tmp_path, "--dump-dom")
    assert messages


def test_cards_are_drawn_forty_at_a_time_with_hostile_text_as_text(page: Path, tmp_path: Path) -> None:
    dom, messages = _browse(page, tmp_path, "--dump-dom")
    body = dom.partition('<div class="cards" id="cards">')[2].partition("<script")[0]
    total = body.count('<article class="card">')
    assert 1 <= total <= 40
    assert messages == []
    assert "<img" not in dom
    assert "&lt;img src=x onerror" in body


def test_nothing_is_wider_than_a_phone(page: Path, tmp_path: Path) -> None:
    # The page itself may run only its own script, so the measuring is done in a copy without the policy.
    measure = "document.title='W'+document.documentElement.scrollWidth+'/'+innerWidth"
    probe = f"<script>addEventListener('load',()=>{{{measure}}})</script>"
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text(encoding="utf-8"))
    copy = page.with_name("narrow.html")
    copy.write_text(text.replace("</body>", f"{probe}</body>"), encoding="utf-8")
    dom, _ = _browse(copy, tmp_path, "--dump-dom", "--window-size=500,900")
    match = re.search(r"<title>W(\d+)/(\d+)</title>", dom)
    assert match
    assert int(match[1]) <= int(match[2])
