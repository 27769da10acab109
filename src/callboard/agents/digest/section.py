"""The sections of the report, each as a piece of HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final

from callboard.agents.digest.crew import Summary
from callboard.agents.digest.html import bar, esc, plural, seconds, size, table
from callboard.agents.digest.ledger import Entry, Ledger
from callboard.agents.digest.merge import Corpus, Pair
from callboard.agents.digest.timeline import tag, timeline
from callboard.agents.digest.walk import LeftOut

_MAX_ROWS: Final = 25
_MAX_PAIRS: Final = 15
_MAX_NAMED: Final = 20
_LONG_READ_MINUTES: Final = 90

METHODS: Final = (
    (
        "Key phrases",
        (
            "C-value: K. Frantzi, S. Ananiadou, H. Mima, \u201cAutomatic recognition of multi-word terms: the "
            "C-value/NC-value method\u201d, 2000; single words admitted as in A. Barr\u00f3n-Cede\u00f1o et al., "
            "\u201cAn improved automatic term recognition method for Spanish\u201d, 2009. Identifiers count as the "
            "words they are made of."
        ),
    ),
    (
        "Telling sentences",
        (
            "TextRank: R. Mihalcea, P. Tarau, \u201cTextRank: bringing order into texts\u201d, 2004. In code, the "
            "sentences of comments and docstrings. They are quoted, never written."
        ),
    ),
    (
        "Phrases of the folder",
        "tf-idf: G. Salton, C. Buckley, \u201cTerm-weighting approaches in automatic text retrieval\u201d, 1988.",
    ),
    (
        "Near-duplicates",
        (
            "Shingles of five words and MinHash: A. Z. Broder, \u201cOn the resemblance and containment of "
            "documents\u201d, 1997; candidates by banding: J. Leskovec, A. Rajaraman, J. Ullman, \u201cMining of "
            "Massive Datasets\u201d, 2014, chapter 3. Percentages are estimates, within about 9 points in 95 of 100 "
            "cases."
        ),
    ),
    (
        "Reading time",
        "238 words a minute, prose only: M. Brysbaert, \u201cHow many words do we read per minute?\u201d, 2019.",
    ),
)


def summary_section(summary: Summary | None) -> str:
    """Return what the agents wrote and who they were; "" where none were asked."""
    if summary is None:
        return ""
    body = "".join(f"<p>{esc(text)}</p>" for text in summary.paragraphs)
    plan = ""
    if summary.focus:
        lines = "".join(f"<li>{esc(line)}</li>" for line in summary.focus)
        plan = f"<details><summary>What the planner asked for</summary><ul>{lines}</ul></details>"
    by = f"Written by an agent with the model {summary.model}." if summary.paragraphs else "There is no summary."
    note = f" {summary.note[:1].upper()}{summary.note[1:]}." if summary.note else ""
    return section("summary", "Summary", by + note, f"{body}{plan}")


def run_section(ledger: Ledger, *, start: datetime, end: datetime) -> str:
    """Return the timeline, the account and who did what."""
    hint = (
        "Each lane is a worker process, each bar a task; bars one above the other ran at the same time. "
        "The strip on top counts the tasks that nobody was running. Point at a bar to see its file."
    )
    return section(
        "run", "How it was read", hint,
        f'<figure style="margin:0" aria-label="Timeline of the run">{timeline(ledger, start=start, end=end)}</figure>'
        f"{_account(ledger)}{_takeovers(ledger)}{_workers(ledger)}",
    )  # fmt: skip


def language_section(corpus: Corpus) -> str:
    """Return the charts of bytes and files by language, and of file sizes."""
    top_bytes = max((total.size_bytes for total in corpus.languages), default=0) or 1
    top_files = max((each.files for each in corpus.sizes), default=0) or 1
    most_files = max((total.files for total in corpus.languages), default=0) or 1
    by_size = sorted(corpus.languages, key=lambda total: (-total.size_bytes, total.name))[:12]
    by_files = sorted(corpus.languages, key=lambda total: (-total.files, total.name))[:12]
    bytes_rows = [
        (esc(t.name), bar(t.size_bytes / top_bytes), esc(size(t.size_bytes)), f"{t.lines:,}") for t in by_size
    ]
    files_rows = [(esc(t.name), bar(t.files / most_files, "c4"), f"{t.files:,}") for t in by_files]
    size_rows = [(esc(each.label), bar(each.files / top_files, "c3"), f"{each.files:,}") for each in corpus.sizes]
    left = table("Bytes by language", ("Language", "Share", "#Size", "#Lines"), bytes_rows, css="chart")
    files = table("Files by language", ("Language", "Share", "#Files"), files_rows, css="chart")
    sizes = table("Files by size", ("Size", "Share", "#Files"), size_rows, css="chart")
    lines = corpus.lines
    hint = (
        f"{plural(lines.total, 'line')}: {lines.code:,} of code and text, {lines.comment:,} of comments, "
        f"{lines.blank:,} blank. The prose would take {_reading(corpus.reading_minutes)} to read."
    )
    return section(
        "languages", "What is in it", hint, f'{left}<div class="two"><div>{files}</div><div>{sizes}</div></div>'
    )


def topic_section(corpus: Corpus) -> str:
    """Return the phrases that mark the folder."""
    if not corpus.topics:
        return ""
    items = "".join(
        f'<li><button type="button" data-find="{esc(topic.text)}"><span>{esc(topic.text)}</span>'
        f"<small>{plural(topic.files, 'file')}</small>{bar(topic.weight, 'c2')}</button></li>"
        for topic in corpus.topics
    )
    hint = (
        "Phrases that mark this folder, weighed by how often they are said and how few files say them. "
        "Choose one to see its files."
    )
    return section("topics", "What it talks about", hint, f'<ol class="topics">{items}</ol>')


def twin_section(corpus: Corpus) -> str:
    """Return the pairs of near-duplicates."""
    if not corpus.pairs:
        hint = "No two files share three fifths or more of their five-word runs."
        return section("twins", "Near-duplicates", hint, "")
    near = [pair for pair in corpus.pairs if not pair.is_identical]
    same = [pair for pair in corpus.pairs if pair.is_identical]
    extra = corpus.pairs_total - len(corpus.pairs)
    hint = f"{plural(corpus.pairs_total, 'pair')} of files that share three fifths or more of their five-word runs."
    body = _pair_table("Nearly the same, most alike first", near[:_MAX_PAIRS]) if near else ""
    body += _folded(plural(len(near) - _MAX_PAIRS, "more pair"), _pair_table("More pairs", near[_MAX_PAIRS:]))
    if same:
        rows = [(_path(pair.other), _path(pair.one)) for pair in same]
        copies = table("The same to the byte", ("Copy", "Of"), rows)
        title = plural(len(same), "file is a copy", "files are copies") + " of another to the byte"
        body += _folded(title, copies) if near or len(same) > _MAX_ROWS else copies
    body += f'<p class="hint">And {plural(extra, "more pair")} that are not listed.</p>' if extra > 0 else ""
    return section("twins", "Near-duplicates", hint, body)


def _pair_table(caption: str, pairs: Sequence[Pair]) -> str:
    rows = [
        (f"{_path(pair.one)}<br>{_path(pair.other)}", bar(pair.similarity, "c1"), f"{pair.similarity * 100:.0f} %")
        for pair in pairs
    ]
    return table(caption, ("Files", "Likeness", "#Shared"), rows, css="chart") if pairs else ""


def _folded(title: str, body: str) -> str:
    return f"<details><summary>{esc(title)}</summary>{body}</details>" if body else ""


def module_section(corpus: Corpus) -> str:
    """Return which Python modules the others lean on."""
    if not corpus.modules:
        return ""
    top = max(len(module.imported_by) for module in corpus.modules) or 1
    rows = [
        (_path(m.path), bar(len(m.imported_by) / top, "c4"), f"{len(m.imported_by):,}", f"{len(m.imports):,}")
        for m in corpus.modules[:12]
    ]
    most = max((count for _, count in corpus.outside), default=0) or 1
    outside = [(f"<code>{esc(name)}</code>", bar(n / most, "c5"), f"{n:,}") for name, n in corpus.outside[:12]]
    left = table("Modules others lean on", ("Module", "Share", "#Imported by", "#Imports"), rows, css="chart")
    right = table("Packages from outside", ("Package", "Share", "#Files"), outside, css="chart") if outside else ""
    hint = "Who imports whom among the Python files."
    return section(
        "modules", "How the code hangs together", hint, f'<div class="two"><div>{left}</div><div>{right}</div></div>'
    )


def file_section() -> str:
    """Return the frame that the script fills with cards."""
    body = (
        '<noscript><p class="hint">The cards need JavaScript; report.json holds the same.</p></noscript>'
        '<div class="tools"><label>Filter by path, language, phrase or symbol'
        '<input id="filter" type="search" autocomplete="off" spellcheck="false"></label>'
        '<label>Order<select id="order"><option value="path">by path</option>'
        '<option value="size">largest first</option>'
        '<option value="lines">most lines first</option><option value="symbols">most symbols first</option>'
        '<option value="slow">slowest to read first</option></select></label></div>'
        '<div class="chips" id="chips" role="group" aria-label="Languages"></div>'
        '<p class="count" id="count" aria-live="polite"></p><div class="cards" id="cards"></div>'
        '<button class="more" id="more" type="button" hidden>Show more</button>'
    )
    return section("files", "File by file", "", body)


def method_section(left_out: Sequence[LeftOut], total: int) -> str:
    """Return how everything was made, and what was not read."""
    methods = "".join(f"<li><b>{esc(name)}.</b> {esc(text)}</li>" for name, text in METHODS)
    out = ""
    if left_out:
        rows = [(_path(item.path, is_link=False), esc(item.reason)) for item in left_out[:200]]
        inner = table("Left out", ("Path", "Why"), rows)
        out = f"<details><summary>{plural(total, 'path')} left out, and why</summary>{inner}</details>"
    hint = "Everything but the summary is made here, without a model. The same folder always gives the same findings."
    return section("methods", "How this was made", hint, f'<ul class="methods">{methods}</ul>{out}')


def section(ident: str, title: str, hint: str, body: str) -> str:
    """Return a section of the page; ``body`` is ready HTML."""
    lead = f'<p class="hint">{esc(hint)}</p>' if hint else ""
    return (
        f'<section id="{ident}" aria-labelledby="h-{ident}"><h2 id="h-{ident}">{esc(title)}</h2>{lead}{body}</section>'
    )


def _account(ledger: Ledger) -> str:
    css = "sum" if ledger.is_whole else "sum bad"
    parts = [
        (
            f'<span><b>{ledger.submitted:,}</b> submitted</span><span class="op">=</span>'
            f'<span><b>{ledger.recorded:,}</b> on record</span><span class="gap"></span>'
        ),
        f"<span><b>{len(ledger.lost):,}</b> lost</span>",
        f"<span><b>{len(ledger.doubled):,}</b> counted twice</span>",
    ]
    if ledger.submitted != ledger.recorded:
        parts[0] = parts[0].replace('"op">=', '"op">\u2260')
    if ledger.phantom:
        parts.append(f"<span><b>{len(ledger.phantom):,}</b> nobody submitted</span>")
    parts += [
        f"<span><b>{count:,}</b> {esc(status)}</span>"
        for status, count in ledger.statuses.items()
        if status != "completed"
    ]
    named = [
        f"<li>{esc(entry.status.capitalize())}: {_path(entry.label, is_link=False)} "
        f"\u2013 {esc(entry.error or 'no reason')}</li>"
        for entry in ledger.failed[:_MAX_NAMED]
    ]
    named += [
        f"<li>{esc(word)}: <code>{esc(task)}</code></li>"
        for word, tasks in (
            ("Lost", ledger.lost),
            ("Counted twice", ledger.doubled),
            ("Nobody submitted", ledger.phantom),
        )
        for task in tasks[:_MAX_NAMED]
    ]
    hint = (
        "The ids come from the submitter, the records from the ledger stream as it was read after the run; "
        "the two were compared one by one."
    )
    listed = f"<ul>{''.join(named)}</ul>" if named else ""
    return f'<h3>The account</h3><p class="{css}">{"".join(parts)}</p><p class="hint">{hint}</p>{listed}'


def _takeovers(ledger: Ledger) -> str:
    if not ledger.taken_over:
        return ""
    names = {worker.worker: worker.name for worker in ledger.workers}
    rows = [
        (
            _path(entry.label),
            esc(names.get(entry.worker, entry.worker)),
            esc(seconds(entry.taken_over_s or 0.0)),
            esc(_took(entry)),
            f"{entry.crashes:,}",
        )
        for entry in ledger.taken_over[: _MAX_ROWS * 2]
    ]
    head = ("Task", "Finished by", "#Taken over after", "#Ran for", "#Crashes")
    why = (
        "A lease lasts four seconds and is extended every second while the worker lives. The killed one could hand "
        "nothing back, so its tasks became free when their leases ran out."
    )
    return table("Tasks the killed worker held", head, rows) + f'<p class="hint">{why}</p>'


def _workers(ledger: Ledger) -> str:
    rows = [
        (
            f'{esc(worker.name)} {tag(worker)}<br><code class="dir">{esc(worker.worker)}</code>',
            esc(", ".join(f"{count:,} {name}" for name, count in worker.by_capability.items()) or "none"),
            esc(seconds(worker.busy_s)),
        )
        for worker in ledger.workers
    ]
    return table("Workers", ("Worker", "Tasks on record", "#Time in tasks"), rows)


def _took(entry: Entry) -> str:
    if entry.claimed_at is None or entry.finished_at is None:
        return "\u2013"
    return seconds((entry.finished_at - entry.claimed_at).total_seconds())


def _reading(minutes: float) -> str:
    if minutes < 1:
        return "less than a minute"
    return plural(round(minutes), "minute") if minutes < _LONG_READ_MINUTES else f"{minutes / 60:.1f} hours"


def _path(path: str, *, is_link: bool = True) -> str:
    folder, slash, name = path.rpartition("/")
    # <wbr>: a long path breaks at its folders, not in the middle of a word.
    shown = f'<span class="dir">{esc(folder + slash).replace("/", "/<wbr>")}</span>{esc(name)}'
    if not is_link:
        return f'<span class="path">{shown}</span>'
    return f'<button type="button" class="link path" data-find="{esc(path)}">{shown}</button>'


def readers(ledger: Ledger) -> Mapping[str, Entry]:
    """Return the record of each file's digest by path."""
    return {entry.label: entry for entry in ledger.entries}
