"""What somebody may have meant who misspelt a name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

NEAR = 3
_NEAR_ENOUGH = 0.5
# What is offered as the name that was meant, not as one of those that there are.
_MUCH_ALIKE = 0.7


def near(name: str, known: Iterable[str], *, count: int = NEAR, cutoff: float = _NEAR_ENOUGH) -> list[str]:
    """Return the ``known`` names that come nearest to ``name``, best first: itself, when it is one of them.

    Args:
        name: What was written.
        known: What there is.
        count: How many at most.
        cutoff: How much alike they must be, 0 to 1.
    """
    return difflib.get_close_matches(name, sorted(set(known)), n=count, cutoff=cutoff)


def hint(name: str, known: Iterable[str], *, before: str = "", after: str = "") -> str:
    """Return ``; did you mean A or B?``, to stand behind an error's text; "" where nothing is much like ``name``.

    Also where ``name`` is one of the ``known``: then it is not misspelt.

    Args:
        name: What was written.
        known: What there is.
        before: What stands before each where it is shown, such as ``greeter/``.
        after: What stands behind it.
    """
    found = near(name, known, cutoff=_MUCH_ALIKE)
    shown = " or ".join(f"{before}{each}{after}" for each in found)
    return f"; did you mean {shown}?" if found and name not in found else ""
