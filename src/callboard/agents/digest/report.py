"""The report: one HTML file that needs nothing else, and the same as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from callboard.agents.digest import frame, section
from callboard.agents.digest.crew import Summary
from callboard.agents.digest.digest import Digest
from callboard.agents.digest.html import esc, plural, seconds, size
from callboard.agents.digest.ledger import Entry, Ledger
from callboard.agents.digest.merge import Corpus
from callboard.agents.digest.walk import LeftOut

DIGEST: Final = "digest"
"""The capability whose tasks read one file each; their labels are the files' paths."""

NO_KILL: Final = (
    "No worker was killed: whenever one was to be, none held a task. The folder is read too fast for that; "
    "a larger one shows it."
)
"""What report and terminal say when the kill on purpose found nobody to kill."""

_MAX_CARD_SYMBOLS: Final = 60
_MAX_CARD_HEADINGS: Final = 40
_JSON_ESCAPES: Final = {
    ord("<"): "\\u003c",
    ord(">"): "\\u003e",
    ord("&"): "\\u0026",
    0x2028: "\\u2028",
    0x2029: "\\u2029",
}


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """What the report must be told about the run.

    Attributes:
        folder: Name of the folder that was read, as a person calls it.
        started_at: First submission.
        finished_at: When the last record was seen.
        left_out: What was not read, and why.
        left_out_total: How many things were left out; ``left_out`` may be cut.
        kill_wanted: Whether a worker was to be killed; where none was, the report says so.
        version: Callboard's version.
        summary: What the agents wrote; None where none were asked.
    """

    folder: str
    started_at: datetime
    finished_at: datetime
    left_out: list[LeftOut] = []
    left_out_total: int = 0
    kill_wanted: bool = False
    version: str = ""
    summary: Summary | None = None


class Written(NamedTuple):
    """Where the two files are."""

    html: Path
    json: Path


def write_report(out: str | Path, corpus: Corpus, ledger: Ledger, run: Run) -> Written:
    """Write ``report.html`` and ``report.json`` into ``out``, which is made if need be. Existing ones are replaced."""
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    written = Written(folder / "report.html", folder / "report.json")
    frame.replace(written.html, render_html(corpus, ledger, run).encode())
    frame.replace(written.json, render_json(corpus, ledger, run))
    return written


def render_json(corpus: Corpus, ledger: Ledger, run: Run) -> bytes:
    """Return the report for programs: ``{"v": 1, "run", "ledger", "corpus"}``, without signatures and term counts."""
    plain = msgspec.to_builtins(corpus)
    for digest in plain["digests"]:
        del digest["signature"], digest["terms"]
    account = {"is_whole": ledger.is_whole, "unmerged": _unmerged(corpus, ledger), **msgspec.to_builtins(ledger)}
    whole = {"v": 1, "run": run, "ledger": account, "corpus": plain}
    return msgspec.json.format(msgspec.json.encode(whole), indent=1) + b"\n"


def render_html(corpus: Corpus, ledger: Ledger, run: Run) -> str:
    """Return the report for people. Every value from a file is escaped; the page may run one script, ours."""
    made = frame.Page(
        title=f"{run.folder}, read by Callboard",
        folder=run.folder,
        kicker=f"{run.folder} \u00b7 read by Callboard on {run.started_at:%d %B %Y at %H:%M} UTC",
        headline=_headline(corpus, ledger),
        footer=footer(run.version),
        verdict=_verdict(corpus, ledger, run),
        figures=_figures(corpus, ledger, run),
        sections={
            "summary": ("Summary", section.summary_section(run.summary)),
            "run": ("The run", section.run_section(ledger, start=run.started_at, end=run.finished_at)),
            **content_sections(corpus),
            "methods": ("Methods", section.method_section(run.left_out, run.left_out_total or len(run.left_out))),
        },
        data=_data(corpus, ledger),
    )
    return frame.render(made)


def footer(version: str) -> str:
    """Return the last line of a report."""
    return f"Made by Callboard {version}. This page is one file and asks no other for anything.".replace(" .", ".")


def content_sections(corpus: Corpus) -> dict[str, tuple[str, str]]:
    """Return what there is to say about the folder itself, for ``frame.Page``."""
    return {
        "languages": ("Contents", section.language_section(corpus)),
        "topics": ("Topics", section.topic_section(corpus)),
        "twins": ("Near-duplicates", section.twin_section(corpus)),
        "modules": ("Imports", section.module_section(corpus)),
        "files": ("Files", section.file_section()),
    }


def _headline(corpus: Corpus, ledger: Ledger) -> str:
    files = plural(corpus.files, "file")
    if not ledger.is_whole or _unmerged(corpus, ledger):
        return f"{files} read, and the account does not close"
    if ledger.failed:
        return f"{files} read, {len(ledger.failed):,} could not be"
    return f"{files}, each counted once" if corpus.files != 1 else "1 file, counted once"


def _verdict(corpus: Corpus, ledger: Ledger, run: Run) -> str:
    parts: list[str] = []
    kill = ledger.kill
    if kill:
        name = next((worker.name for worker in ledger.workers if worker.worker == kill.worker), kill.worker)
        after = seconds((kill.at - run.started_at).total_seconds())
        parts.append(f"{name} was killed on purpose with {kill.signal}, {after} into the run.")
        parts.append(_taken_over(ledger))
    elif run.kill_wanted:
        parts.append(NO_KILL)
    good = esc(" ".join(parts))
    unmerged = _unmerged(corpus, ledger)
    if ledger.is_whole and not unmerged:
        end = "Nothing was lost and nothing was counted twice."
        failed = plural(len(ledger.failed), "task has no result", "tasks have no result")
        but = f' <strong class="bad">{esc(failed)}; the account says why.</strong>' if ledger.failed else ""
        return f'{good} <strong class="good">{end}</strong>{but}'
    wrong = [
        plural(len(ledger.lost), "task was lost", "tasks were lost") if ledger.lost else "",
        plural(len(ledger.doubled), "task was", "tasks were") + " counted twice" if ledger.doubled else "",
        plural(len(ledger.phantom), "record has", "records have") + " no submission" if ledger.phantom else "",
        f"the merge and the ledger differ by {plural(len(unmerged), 'file')}: {unmerged[0]}" if unmerged else "",
        *(f"{count:,} {status}" for status, count in ledger.statuses.items() if status != "completed"),
    ]
    return f'{good} <strong class="bad">{esc(_sentence("; ".join(filter(None, wrong))))}.</strong>'


def _unmerged(corpus: Corpus, ledger: Ledger) -> list[str]:
    """Return files that were digested and not merged, or merged without a digest on record."""
    on_record = {entry.label for entry in ledger.entries if entry.capability == DIGEST and entry.status == "completed"}
    return sorted(on_record ^ {digest.path for digest in corpus.digests})


def _taken_over(ledger: Ledger) -> str:
    waits = [entry.taken_over_s for entry in ledger.taken_over if entry.taken_over_s is not None]
    if not waits:
        held = plural(len(ledger.kill.held), "task") if ledger.kill and ledger.kill.held else ""
        return f"It had just finished the {held} it held." if held else "It held no task at that moment."
    if len(waits) == 1:
        return f"The task it held was taken over by another worker {seconds(waits[0])} later."
    last = seconds(max(waits))
    return f"The {len(waits)} tasks it held were taken over by other workers, the last one {last} later."


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _figures(corpus: Corpus, ledger: Ledger, run: Run) -> list[tuple[str, str]]:
    length_s = max((run.finished_at - run.started_at).total_seconds(), 0.001)
    figures = [
        ("files", f"{corpus.files:,}"),
        ("read", size(corpus.size_bytes)),
        ("tasks", f"{ledger.recorded:,}"),
        _processes(ledger),
        ("from first to last", seconds(length_s)),
        ("tasks a second", f"{ledger.recorded / length_s:,.1f}"),
    ]
    if ledger.kill:
        waits = [entry.taken_over_s or 0.0 for entry in ledger.taken_over]
        figures.append(("tasks taken over", f"{len(waits):,}"))
        figures.append(("until the last takeover", seconds(max(waits)) if waits else "\u2013"))
    return figures


def _processes(ledger: Ledger) -> tuple[str, str]:
    more = sum(worker.fate == "replacement" for worker in ledger.workers)
    if not more:
        return "worker processes", f"{len(ledger.workers):,}"
    return "workers + replacement", f"{len(ledger.workers) - more:,} + {more:,}"


def _data(corpus: Corpus, ledger: Ledger) -> str:
    return cards(corpus, section.readers(ledger), {worker.worker: worker.name for worker in ledger.workers})


def cards(corpus: Corpus, entries: Mapping[str, Entry], names: Mapping[str, str]) -> str:
    """Return the JSON of the files' cards, safe inside a script element.

    Args:
        corpus: The files.
        entries: Who read a file and when, by path; may be empty.
        names: What to call the workers in ``entries``.
    """
    topics = {topic.text.lower(): topic.text for topic in corpus.topics}
    data = {
        "languages": [(total.name, total.files) for total in sorted(corpus.languages, key=lambda total: -total.files)],
        "files": [_card(digest, entries.get(digest.path), names, topics) for digest in corpus.digests],
    }
    # Inside a script element only "<" can end it; the rest is for whoever copies the JSON elsewhere.
    return msgspec.json.encode(data).decode().translate(_JSON_ESCAPES)


def _card(
    digest: Digest, entry: Entry | None, names: Mapping[str, str], topics: Mapping[str, str]
) -> dict[str, object]:
    took_s = 0.0
    if entry and entry.claimed_at and entry.finished_at:
        took_s = (entry.finished_at - entry.claimed_at).total_seconds()
    return {
        "path": digest.path,
        "kind": digest.kind,
        "language": digest.language if digest.kind != "empty" else f"{digest.language}, empty",
        "size": digest.size_bytes,
        "lines": digest.lines.total,
        "code": digest.lines.code if digest.kind == "code" else 0,
        "words": digest.words,
        "phrases": [phrase.text for phrase in digest.phrases],
        # Found by the filter, so that choosing a topic shows the files it was counted in.
        "topics": sorted({topics[key] for key in map(str.lower, digest.terms) if key in topics}),
        "sentences": [(sentence.text, sentence.line) for sentence in digest.sentences],
        "headings": [(heading.text, heading.line) for heading in digest.headings[:_MAX_CARD_HEADINGS]],
        "symbols": [(symbol.kind, symbol.name, symbol.line) for symbol in digest.symbols[:_MAX_CARD_SYMBOLS]],
        "symbolsTotal": len(digest.symbols),
        "notes": digest.notes,
        "by": names.get(entry.worker, entry.worker) if entry else "",
        "took": seconds(took_s),
        "ms": round(took_s * 1000),
        "over": bool(entry and entry.taken_over_s is not None),
    }
