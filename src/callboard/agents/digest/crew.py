"""The demo's two agents: one plans what a reader would want to know of a folder, one writes the report's summary."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import msgspec
from msgspec import Struct

from callboard.agents.agent import Agent
from callboard.agents.digest.merge import Corpus
from callboard.agents.digest.walk import Walk
from callboard.agents.message import AgentResult, Task
from callboard.runtime.actor.ref import ActorRef
from callboard.runtime.bus.base import Bus
from callboard.runtime.errors import CallboardError

ASK_S = 90.0
"""How long the demo waits for each agent; a report without a summary is better than none."""

_FOLDERS = 12
_KINDS = 6
_TOPICS = 12
_FILES = 40
_SENTENCES = 2
_FOCUS = 5


class Outline(Struct, frozen=True, kw_only=True):
    """What a reader would want to know, one line each, the most important first."""

    focus: list[str]


class Draft(Struct, frozen=True, kw_only=True):
    """The summary: two to four paragraphs."""

    paragraphs: list[str]


class Summary(Struct, frozen=True, kw_only=True):
    """What the agents made of a folder.

    Attributes:
        paragraphs: The summary.
        focus: What the planner wanted it to be about.
        model: Who wrote it, ``provider/model``.
        note: What is to be said of it: that no model was configured, or why there is none.
    """

    paragraphs: list[str] = []
    focus: list[str] = []
    model: str = ""
    note: str = ""


class Planner(Agent, name="demo-planner", output=Outline, max_turns=3, budget={"tokens": 50_000}):
    """You plan the summary of a folder of files for somebody who has never seen it.

    You are told what the folder holds. Name up to five things that its reader would want to know, in one line each,
    the most important first. Use plain words, and nothing that the listing does not show.
    """


class Writer(Agent, name="demo-writer", output=Draft, max_turns=3, budget={"tokens": 100_000}):
    """You write the summary of a folder of files, from sentences and key phrases that were found in them.

    Write two to four short paragraphs in plain words. Keep to what you are given: no guesses, no praise.
    """


class Crew:
    """Asks the two agents, which workers host. Neither stops the demo when it fails: the report says why."""

    def __init__(self, bus: Bus, run: str) -> None:
        """Take a connection, and what names this run."""
        self._bus = bus
        self._run = run

    async def plan(self, folder: str, found: Walk) -> Summary:
        """Have it planned what the summary shall be about."""
        task = Task(listing(folder, found))
        try:
            answer = await self._ask(Planner, task)
        except CallboardError as error:
            return Summary(note=f"the planner failed: {error.code}: {error}")
        if answer.status != "done":
            return Summary(note=f"the planner ended early ({answer.status}): {answer.reason}")
        return Summary(focus=msgspec.convert(answer.output, Outline).focus[:_FOCUS])

    async def write(self, folder: str, corpus: Corpus, plan: Summary) -> Summary:
        """Have the summary written."""
        about = {"sentences": sentences(corpus), "key phrases": phrases(corpus)}
        if plan.focus:
            about["plan"] = "\n".join(f"- {line}" for line in plan.focus)
        try:
            answer = await self._ask(Writer, Task(f"Write the summary of the folder {folder}.", context=about))
        except CallboardError as error:
            return Summary(focus=plan.focus, note=f"the writer failed: {error.code}: {error}")
        if answer.status != "done":
            note = f"the writer ended early ({answer.status}): {answer.reason}"
            return Summary(focus=plan.focus, model=answer.model, note=note)
        draft = msgspec.convert(answer.output, Draft)
        note = answer.note or plan.note
        return Summary(paragraphs=draft.paragraphs, focus=plan.focus, model=answer.model, note=note)

    async def _ask(self, agent: type[Agent], task: Task) -> AgentResult:
        ref = ActorRef(self._bus, f"{agent.actor_name}/{self._run}")
        found: AgentResult = await ref.ask(task, returns=AgentResult, timeout_s=ASK_S)
        return found


def listing(folder: str, found: Walk) -> str:
    """Return what a folder holds, in sentences: how many files of which kinds, by folder."""
    kinds = Counter(_suffix(file.path) for file in found.files)
    folders = Counter(file.path.rpartition("/")[0] or "." for file in found.files)
    shown = ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common(_KINDS))
    lines = [f"The folder {folder} has {len(found.files):,} files: {shown}."]
    lines += [f"The folder {name} holds {count:,} files." for name, count in folders.most_common(_FOLDERS)]
    return "\n\n".join(lines)


def sentences(corpus: Corpus) -> str:
    """Return the most telling sentences of the files that the folder's topics are about, each by itself."""
    topics = {topic.text.casefold(): topic.weight for topic in corpus.topics}

    def weight(terms: Sequence[str]) -> float:
        return sum(topics.get(term.casefold(), 0.0) for term in terms)

    best = sorted(corpus.digests, key=lambda digest: -weight(list(digest.terms)))[:_FILES]
    return "\n\n".join(found.text for digest in best for found in digest.sentences[:_SENTENCES])


def phrases(corpus: Corpus) -> str:
    """Return the folder's key phrases on one line."""
    return ", ".join(topic.text for topic in corpus.topics[:_TOPICS])


def _suffix(path: str) -> str:
    name = path.rpartition("/")[2]
    return f".{name.rpartition('.')[2]}" if "." in name[1:] else "without a suffix"
