"""The autoscaler's rehearsal as one HTML file: a drawing of what was asked for, what there was, and what was busy."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence

from msgspec import Struct

_WIDTH, _HEIGHT, _LEFT, _TOP, _GAP = 900.0, 190.0, 50.0, 24.0, 46.0
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Autoscaler rehearsal</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 62rem; padding: 0 1rem;
  color: #1b1f24; background: #fff }}
svg {{ width: 100%; height: auto }} text {{ font: 12px system-ui, sans-serif; fill: currentColor }}
pre {{ overflow-x: auto }} .frame {{ fill: none; stroke: #8888; }} .mark {{ stroke: #8884 }}
@media (prefers-color-scheme: dark) {{ body {{ color: #e6e6e6; background: #15181c }} }}
</style></head><body>
<h1>Autoscaler rehearsal</h1>
<p>{about}</p>
{drawing}
<pre>{figures}</pre>
</body></html>
"""


class Sample(Struct, frozen=True, kw_only=True):
    """What was seen at a moment.

    Attributes:
        at_s: Seconds of this machine since the load began.
        rate: Tasks a second that are handed in.
        lag: What the scaler sees: waiting and in flight.
        wanted: Pods that the autoscaler wants.
        alive: Processes, those that drain included.
        ready: Pods that take work.
        busy: Slots with a task in them.
    """

    at_s: float
    rate: float
    lag: float
    wanted: int
    alive: int
    ready: int
    busy: int


Line = tuple[str, str, Callable[[Sample], float]]


def page(samples: Sequence[Sample], *, slots: int, about: str, figures: str) -> str:
    """Return the file's text. ``slots`` are those of a pod."""
    panels: list[list[Line]] = [
        [
            ("lag (waiting and in flight)", "#c2410c", lambda each: each.lag),
            ("slots of ready pods", "#2563eb", lambda each: float(each.ready * slots)),
            ("busy slots", "#15803d", lambda each: float(each.busy)),
        ],
        [
            ("pods wanted", "#7c3aed", lambda each: float(each.wanted)),
            ("processes, draining ones too", "#be123c", lambda each: float(each.alive)),
            ("pods ready", "#2563eb", lambda each: float(each.ready)),
        ],
        [("tasks handed in a second", "#0f766e", lambda each: each.rate)],
    ]
    height = len(panels) * (_HEIGHT + _GAP) + _TOP
    drawn = "\n".join(
        _panel(samples, lines, top=_TOP + number * (_HEIGHT + _GAP)) for number, lines in enumerate(panels)
    )
    drawing = (
        f'<svg viewBox="0 0 {_WIDTH + _LEFT + 24:g} {height:g}" role="img" '
        f'aria-label="Lag, slots, pods and rate over time">\n{drawn}\n</svg>'
    )
    return _PAGE.format(about=html.escape(about), drawing=drawing, figures=html.escape(figures))


def _panel(samples: Sequence[Sample], lines: Sequence[Line], *, top: float) -> str:
    end_s = max((each.at_s for each in samples), default=1.0) or 1.0
    most = max((value(each) for _, _, value in lines for each in samples), default=1.0) or 1.0
    parts = [f'<rect class="frame" x="{_LEFT:g}" y="{top:g}" width="{_WIDTH:g}" height="{_HEIGHT:g}"/>']
    for share in (0.0, 0.5, 1.0):
        y = top + _HEIGHT * (1 - share)
        parts.append(f'<line class="mark" x1="{_LEFT:g}" x2="{_LEFT + _WIDTH:g}" y1="{y:g}" y2="{y:g}"/>')
        parts.append(f'<text x="{_LEFT - 6:g}" y="{y + 4:g}" text-anchor="end">{most * share:.3g}</text>')
    for tenth in range(0, 11, 2):
        x = _LEFT + _WIDTH * tenth / 10
        parts.append(
            f'<text x="{x:g}" y="{top + _HEIGHT + 15:g}" text-anchor="middle">{end_s * tenth / 10:.0f} s</text>'
        )
    for number, (name, color, value) in enumerate(lines):
        # a step holds until the next look
        points: list[tuple[float, float]] = []
        for each in samples:
            x, y = _LEFT + _WIDTH * each.at_s / end_s, top + _HEIGHT * (1 - value(each) / most)
            points += [(x, points[-1][1]), (x, y)] if points else [(x, y)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="{4 - number:g}"/>')
        at = _LEFT + 4 + number * 240
        parts.append(f'<rect x="{at:g}" y="{top - 14:g}" width="10" height="10" fill="{color}"/>')
        parts.append(f'<text x="{at + 15:g}" y="{top - 5:g}">{html.escape(name)}</text>')
    return "\n".join(parts)
