"""The book of the root suite: what each row of the fault matrix did, printed at the end, and what was skipped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from msgspec import Struct

from tests.chaos.cluster_ledger import Row


class Line(Struct, frozen=True, kw_only=True):
    """What one fault did to what was acknowledged.

    Attributes:
        number: Of the row in the fault matrix.
        where: The disk, the network or the setting it was done on.
        again: Deliveries of work that had been delivered before, and handler starts that had begun before.
        recovery_s: From the fault to the first effect of work offered after it; None where that is not measured.
        note: What else is to be said.
    """

    number: int
    fault: str
    where: str
    what: str
    acked: int
    lost: int
    doubled: int = 0
    again: tuple[int, int] | None = None
    recovery_s: float | None = None
    note: str = ""

    def __str__(self) -> str:
        """Return one line of the table."""
        delivered, runs = self.again if self.again is not None else ("-", "-")
        back = f"{self.recovery_s:.1f}" if self.recovery_s is not None else "-"
        return (
            f"{self.number:>3}  {self.fault:<34}{self.where:<16}{self.what:<7}{self.acked:>6}{self.lost:>6}"
            f"{self.doubled:>8}{delivered:>13}{runs:>9}{back:>12}  {self.note}"
        ).rstrip()


HEAD = (
    f"{'row':>3}  {'fault':<34}{'where':<16}{'what':<7}{'acked':>6}{'lost':>6}{'doubled':>8}{'redelivered':>13}"
    f"{'re-runs':>9}{'recovery s':>12}"
)


class Book:
    """Lines of this run, in the order of the matrix."""

    def __init__(self) -> None:
        self._lines: list[Line] = []
        self.skips: dict[str, str] = {}

    def add(self, line: Line) -> None:
        """Write one line down."""
        self._lines.append(line)
        print(line)  # noqa: T201 - a test's evidence

    def add_rows(self, number: int, rows: Iterable[Row], *, where: str) -> None:
        """Write down what a ledger's rows say."""
        for row in rows:
            self.add(
                Line(
                    number=number,
                    fault=row.fault.name,
                    where=where,
                    what=row.what,
                    acked=row.acked,
                    lost=row.lost,
                    doubled=row.doubled,
                    again=(row.redelivered, row.reruns),
                    recovery_s=row.recovery_s,
                    note="; ".join([*row.problems, *(["tested nothing"] if row.tested_nothing else [])]),
                )
            )

    def lines(self) -> Sequence[str]:
        """Return the table and the list of skips."""
        table = (
            [HEAD, *(str(line) for line in sorted(self._lines, key=lambda line: line.number))] if self._lines else []
        )
        return [*table, *(f"SKIP {what}: {reason}" for what, reason in sorted(self.skips.items()))]


BOOK = Book()
