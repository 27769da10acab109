"""The report is true, safe to open whatever was read, and one file that asks for nothing else."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest

from callboard.agents.digest.digest import digest_bytes
from callboard.agents.digest.ledger import Failure, Held, Kill, Ledger, Record, Submitted, account
from callboard.agents.digest.merge import Corpus, merge
from callboard.agents.digest.report import NO_KILL, Run, render_html, render_json, write_report
from callboard.agents.digest.walk import LeftOut

START = datetime(2026, 11, 21, 9, 30, tzinfo=UTC)
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"


def at(after_s: float) -> datetime:
    return START + timedelta(seconds=after_s)


def corpus(*extra: tuple[str, str]) -> Corpus:
    sources = {f"docs/{n}.md": f"# Page {n}\n\nThis page number {n} is about the ledger of tasks.\n" for n in range(6)}
    return merge(digest_bytes(path, text.encode()) for path, text in {**sources, **dict(extra)}.items())


def ledger(found: Corpus, *, lose: str = "", kill: bool = True) -> Ledger:
    paths = [digest.path for digest in found.digests]
    records = [
        Record(
            task=f"digest/{path}", capability="digest", status="completed", worker=f"host-{n % 3}",
            claimed_at=at(n * 0.1), finished_at=at(n * 0.1 + 0.09),
        )
        for n, path in enumerate(paths)
        if path != lose
    ]  # fmt: skip
    held = Held(task=f"digest/{paths[-1]}", claimed_at=at(0.2))
    return account(
        [f"digest/{path}" for path in paths],
        records,
        kill=Kill(worker="host-9", at=at(0.3), held=[held]) if kill else None,
        labels={f"digest/{path}": path for path in paths},
    )


RUN = Run(
    folder="garden", started_at=START, finished_at=at(2), left_out=[LeftOut(path="a<b>.log", reason="<i>big</i>")]
)


class Page(HTMLParser):
    """Tags and attributes as a browser would see them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def hostile_corpus() -> Corpus:
    quote = "\"'><svg/onload=alert(3)>"
    page = f"# {HOSTILE}\n\nThis sentence is here to be chosen {HOSTILE} by the summary of the page.\n"
    code = f'"""Docs {HOSTILE} of a module that is rather long."""\n# {quote}\ndef alert_me(): ...\n'
    return corpus((f"evil/{HOSTILE}.md", page), (f"evil/{quote}.py", code), (f"copy/{HOSTILE}.md", page))


def test_a_hostile_file_never_reaches_the_page_as_markup() -> None:
    found = hostile_corpus()
    page = Page(render_html(found, ledger(found), RUN))
    scripts = [attrs for tag, attrs in page.tags if tag == "script"]
    assert scripts == [{"type": "application/json", "id": "data"}, {}]
    assert not [tag for tag, _ in page.tags if tag in {"img", "iframe", "object", "i<b"}]
    assert not [attrs for _, attrs in page.tags if any(name.startswith("on") for name in attrs)]
    assert "</script><script>alert(1)" not in render_html(found, ledger(found), RUN)


def test_the_hostile_text_is_still_shown_as_text() -> None:
    found = hostile_corpus()
    html = render_html(found, ledger(found), RUN)
    match = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    assert match
    assert f"evil/{HOSTILE}.md" in [file["path"] for file in json.loads(match[1])["files"]]


def test_the_page_asks_for_nothing_outside_itself() -> None:
    found = corpus()
    html = render_html(found, ledger(found), RUN)
    urls = [v for _, attrs in Page(html).tags for name, v in attrs.items() if name in {"src", "href"} and v]
    assert all(url.startswith(("#", "data:")) for url in urls)
    assert "url(" not in html
    assert "@import" not in html


def test_headings_go_down_one_step_at_a_time_and_every_table_has_a_caption() -> None:
    found = hostile_corpus()
    page = Page(render_html(found, ledger(found), RUN))
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    tags = [tag for tag, _ in page.tags]
    assert tags.count("table") == tags.count("caption") > 0
    svgs = [attrs for tag, attrs in page.tags if tag == "svg"]
    assert all(attrs.get("aria-label") or attrs.get("aria-hidden") for attrs in svgs)


def test_the_verdict_says_who_was_killed_and_that_nothing_was_lost() -> None:
    found = corpus()
    html = render_html(found, ledger(found), RUN)
    assert "was killed on purpose with SIGKILL, 300 ms into the run." in html
    assert "The task it held was taken over by another worker 200 ms later." in html
    assert "Nothing was lost and nothing was counted twice." in html


@pytest.mark.parametrize("kill", [True, False])
def test_a_run_that_lost_a_task_does_not_say_otherwise(kill: bool) -> None:
    found = corpus()
    html = render_html(found, ledger(found, lose="docs/3.md", kill=kill), RUN)
    assert "Nothing was lost" not in html
    assert "1 task was lost; the merge and the ledger differ by 1 file: docs/3.md." in html
    assert "the account does not close" in html
    assert "digest/docs/3.md" in html


def test_a_file_without_a_digest_is_named_with_the_reason() -> None:
    found = corpus()
    records = [
        Record(task=f"digest/{digest.path}", capability="digest", status="completed") for digest in found.digests
    ]
    error = Failure(message="gone.md cannot be read: No such file or directory")
    records.append(Record(task="digest/gone.md", capability="digest", status="failed", error=error))
    labels = {record.task: record.task.removeprefix("digest/") for record in records}
    html = render_html(found, account(labels, records, labels=labels), RUN)
    assert "6 files read, 1 could not be" in html
    assert "Nothing was lost and nothing was counted twice." in html
    assert "gone.md cannot be read: No such file or directory" in html


def test_a_kill_that_found_nobody_is_said_so() -> None:
    found = corpus()
    wanted = msgspec.structs.replace(RUN, kill_wanted=True)
    assert NO_KILL in render_html(found, ledger(found, kill=False), wanted)
    assert NO_KILL not in render_html(found, ledger(found), wanted)
    assert NO_KILL not in render_html(found, ledger(found, kill=False), RUN)


def test_the_strip_counts_the_tasks_that_nobody_was_running() -> None:
    waits = ((0, 0.5), (0, 1.0), (0.2, 1.5))
    records = [
        Record(
            task=f"t{n}", capability="digest", status="completed", worker="w", submitted=Submitted(at=at(begin)),
            claimed_at=at(end), finished_at=at(2),
        )
        for n, (begin, end) in enumerate(waits)
    ]  # fmt: skip
    html = render_html(corpus(), account([r.task for r in records], records), RUN)
    assert 'aria-label="Tasks waiting: at most 3"' in html


def test_a_merge_that_missed_a_file_does_not_go_unnoticed() -> None:
    found = corpus()
    html = render_html(merge(found.digests[1:]), ledger(found), RUN)
    assert "Nothing was lost" not in html
    assert "The merge and the ledger differ by 1 file: docs/0.md." in html


def test_thousands_of_tasks_are_drawn_with_hundreds_of_bars() -> None:
    records = [
        Record(
            task=f"t{n}", capability="digest", status="completed", worker=f"w{n % 3}",
            claimed_at=at(n * 0.001), finished_at=at(n * 0.001 + 0.002),
        )
        for n in range(6_000)
    ]  # fmt: skip
    found = corpus()
    run = Run(folder="many", started_at=START, finished_at=at(6.1))
    html = render_html(found, account([r.task for r in records], records), run)
    assert 100 < html.count('class="task') < 300
    assert "short tasks: at" in html


def test_an_empty_folder_and_no_kill_still_make_a_page(tmp_path: Path) -> None:
    written = write_report(tmp_path / "new", merge([]), account([], []), RUN)
    assert written.html.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert json.loads(written.json.read_bytes())["corpus"]["files"] == 0


def test_the_json_holds_the_same_account() -> None:
    found = corpus()
    whole = json.loads(render_json(found, ledger(found), RUN))
    assert whole["v"] == 1
    assert whole["ledger"]["is_whole"] is True
    assert whole["ledger"]["submitted"] == whole["ledger"]["recorded"] == 6
    assert [digest["path"] for digest in whole["corpus"]["digests"]] == [f"docs/{n}.md" for n in range(6)]


def test_the_same_input_gives_the_same_page() -> None:
    found = hostile_corpus()
    assert render_html(found, ledger(found), RUN) == render_html(found, ledger(found), RUN)
