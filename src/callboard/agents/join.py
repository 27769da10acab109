"""When a join of branches has waited enough, and what it comes to: decisions without any waiting in them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

from callboard.agents.errors import FlowError
from callboard.agents.message import AgentResult
from callboard.agents.run_record import Join, Outcome
from callboard.runtime import codec
from callboard.runtime.errors import InputError

How = Literal["collect", "vote", "first", "reduce"]


def check(
    count: int, *, names: Sequence[str], how: str, quorum: int | None, cap: int | None, deadline_s: float | None
) -> None:
    """Refuse a join of ``count`` branches that cannot be meant; ``names`` are those that they were given.

    Raises:
        InputError: Saying what is wrong and what to give.
    """
    wrong = ""
    twice = sorted(name for name, times in Counter(names).items() if times > 1)
    if not count:
        wrong = "it has no branches: give at least one"
    elif twice:
        wrong = f"two branches are named {twice[0]!r}: give each a name= of its own"
    elif how not in get_args(How):
        wrong = f"join is {how!r}: take one of {', '.join(get_args(How))}"
    elif quorum is not None and not 1 <= quorum <= count:
        wrong = f"quorum is {quorum} and there are {count} branches: take 1 to {count}, or leave it out"
    elif cap is not None and cap < 1:
        wrong = f"cap is {cap}: take 1 or more branches at a time, or leave it out for all"
    elif deadline_s is not None and deadline_s <= 0:
        wrong = f"deadline_s is {deadline_s:g}, which has passed: take seconds from now, above 0"
    if wrong:
        message = f"parallel: {wrong}"
        raise InputError(message)


def is_enough(join: Join, found: Mapping[str, Outcome], *, is_late: bool = False) -> bool:
    """Return whether the join need not wait any longer; ``is_late`` when its deadline has come.

    ``found`` are the branches that have ended. A lost branch leaves the result partial; a failed one ends the join
    unless it is optional or a quorum is named that is still in reach.

    Raises:
        FlowError: If the join can come to nothing any more.
    """
    done = sum(1 for each in found.values() if each.status == "done")
    pending = 0 if is_late else len(join.expected) - len(found)
    if join.how == "first" and done:
        return True
    if join.quorum is None and join.how != "first":
        _refuse_failed(join, found)
    if done + pending < _needed(join, found, is_late=is_late):
        raise _out_of_reach(join, found, done)
    return not pending


def settle(join: Join, found: Mapping[str, Outcome], *, is_late: bool) -> list[Outcome]:
    """Return how every branch ended, in order; those that are not waited for are lost, or no longer needed."""
    status: Literal["lost", "cancelled"] = "lost" if is_late else "cancelled"
    text = "nothing came until the join's deadline" if is_late else "another branch was first"
    return [found.get(name) or Outcome(name=name, status=status, error=text) for name in join.expected]


def vote(results: Mapping[str, Any], key: Callable[[Any], object] | None = None) -> tuple[Any, dict[str, int]]:
    """Return the result that most branches came to, and the count of each; of equal counts the earliest branch's.

    Args:
        results: By branch, in order.
        key: What of a result counts; default: an agent's output, else its text without case and outer blanks.

    Raises:
        FlowError: If there is nothing to count.
    """
    if not results:
        message = "vote: no branch has a result to count"
        raise FlowError(message)
    first: dict[str, Any] = {}
    counts: Counter[str] = Counter()
    for result in results.values():
        ballot = codec.canonical(key(result) if key is not None else _ballot(result)).decode()
        counts[ballot] += 1
        _ = first.setdefault(ballot, result)
    # most_common keeps the order of first sight among equals
    winner = counts.most_common(1)[0][0]
    return first[winner], dict(counts)


def _needed(join: Join, found: Mapping[str, Outcome], *, is_late: bool) -> int:
    if join.how == "first":
        return 1
    if join.quorum is not None:
        return join.quorum
    is_partial = is_late or any(each.status == "lost" for each in found.values())
    # nothing at all is no partial result, unless nothing was required
    return 1 if is_partial and len(join.optional) < len(join.expected) else 0


def _refuse_failed(join: Join, found: Mapping[str, Outcome]) -> None:
    bad = next((each for each in found.values() if each.status == "failed" and each.name not in join.optional), None)
    if bad is not None:
        message = (
            f"join {join.name!r}: the branch {bad.name!r} failed and is not optional: {bad.error}. Mark it "
            "is_optional=True, or name a quorum, if the flow can do without it"
        )
        raise FlowError(message)


def _out_of_reach(join: Join, found: Mapping[str, Outcome], done: int) -> FlowError:
    wanted = "one result" if join.quorum is None else f"a quorum of {join.quorum}"
    bad = "; ".join(f"{each.name} {each.status}: {each.error}" for each in found.values() if each.status != "done")
    late = len(join.expected) - len(found)
    silent = f"; {late} gave no answer in time" if late else ""
    message = f"join {join.name!r}: {done} of {len(join.expected)} branches are done, {wanted} is out of reach: {bad}"
    return FlowError(f"{message}{silent}")


def _ballot(result: Any) -> object:  # noqa: ANN401 - whatever a branch came to
    if isinstance(result, AgentResult):
        return result.output if result.output is not None else result.text.strip().casefold()
    return result.strip().casefold() if isinstance(result, str) else result
