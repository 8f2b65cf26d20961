# SPDX-License-Identifier: Apache-2.0
"""Line plots as small SVG drawings that take their colours from the page, so that they are readable light and dark.

Written by hand rather than by a plotting library: the drawing of a curve is one path, is the same byte for byte on
every machine, scales with the page and touches no global plotting state.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

WIDTH, HEIGHT = 400, 230
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 30, 36
BINS = 240


def line_plot(title: str, x: Sequence[float], y: Sequence[float | None], *, x_label: str = "", log: bool | None = None) -> str:
    """One curve as an `<svg>` element: the mean per bin as a line over the band from minimum to maximum.

    x must not decrease. y may hold None or values that are not finite, which are left out. log: logarithmic y axis; by
    default where all values are positive and span more than a factor of 100.
    """
    points = [(float(a), float(b)) for a, b in zip(x, y, strict=True) if b is not None and math.isfinite(b)]
    if not points:
        return _frame(title, f"{title}: no finite values", [f'<text x="{WIDTH / 2}" y="{HEIGHT / 2}" class="m">no values</text>'])
    values = [b for _, b in points]
    if log is None:
        log = min(values) > 0 and max(values) > 100 * min(values)
    if log and min(values) <= 0:
        raise ValueError(f"{title} holds values that are not positive, so it cannot be drawn on a logarithmic axis")
    scale = math.log10 if log else float
    low, high, y_step, ticks = _axis(scale(min(values)), scale(max(values)), whole=log)
    first, last, x_step, x_ticks = _axis(points[0][0], points[-1][0], snug=True)

    def across(value: float) -> float:
        return LEFT + (value - first) / (last - first) * (WIDTH - LEFT - RIGHT)

    def down(value: float) -> float:
        return HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    parts = []
    for tick in ticks:
        label = _number(10**tick, 10 ** math.floor(tick + 1e-9)) if log else _number(tick, y_step)
        parts.append(f'<line class="g" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{down(tick):.1f}" y2="{down(tick):.1f}"/>')
        parts.append(f'<text class="e" x="{LEFT - 6}" y="{down(tick) + 4:.1f}">{label}</text>')
    for tick in x_ticks:
        parts.append(f'<text class="m" x="{across(tick):.1f}" y="{HEIGHT - BOTTOM + 16}">{_number(tick, x_step)}</text>')
    parts.append(f'<text class="m" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 5}">{escape(x_label)}</text>')
    bins = _bins(points)
    if any(top > bottom for _, _, bottom, top in bins):
        upper = [f"{across(a):.1f},{down(scale(top)):.1f}" for a, _, _, top in bins]
        lower = [f"{across(a):.1f},{down(scale(bottom)):.1f}" for a, _, bottom, _ in reversed(bins)]
        parts.append(f'<polygon class="b" points="{" ".join(upper + lower)}"/>')
    line = [f"{across(a):.1f},{down(scale(mean)):.1f}" for a, mean, _, _ in bins]
    if len(line) == 1:
        parts.append('<circle class="d" r="3" cx="{}" cy="{}"/>'.format(*line[0].split(",")))
    parts.append(f'<polyline class="c" points="{" ".join(line)}"/>')
    spoken = f"{title}: from {_number(values[0])} to {_number(values[-1])} over {_number(points[0][0])} to "
    return _frame(title, f"{spoken}{_number(points[-1][0])} {x_label}", parts)


def histogram(title: str, values: Sequence[float], *, low: float, high: float, bins: int = 20, x_label: str = "") -> str:
    """How many of `values` lie in each of `bins` parts of [low, high], as bars of an `<svg>` element; those beyond are left out."""
    counts = [0] * bins
    for value in values:
        if math.isfinite(value) and low <= value <= high:
            counts[min(bins - 1, int((value - low) / (high - low) * bins))] += 1
    _, top, y_step, ticks = _axis(0, max(1, *counts), whole=True)
    width, height = (WIDTH - LEFT - RIGHT) / bins, HEIGHT - TOP - BOTTOM
    parts = []
    for tick in ticks:
        down = HEIGHT - BOTTOM - tick / top * height
        parts.append(f'<line class="g" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{down:.1f}" y2="{down:.1f}"/>')
        parts.append(f'<text class="e" x="{LEFT - 6}" y="{down + 4:.1f}">{_number(tick, y_step)}</text>')
    for k, count in enumerate(counts):
        tall = count / top * height
        place = f'x="{LEFT + k * width + 1:.1f}" y="{HEIGHT - BOTTOM - tall:.1f}" width="{width - 2:.1f}" height="{tall:.1f}"'
        parts.append(f'<rect class="d" {place}/>')
    for tick in (low, (low + high) / 2, high):
        across = LEFT + (tick - low) / (high - low) * (WIDTH - LEFT - RIGHT)
        parts.append(f'<text class="m" x="{across:.1f}" y="{HEIGHT - BOTTOM + 16}">{_number(tick)}</text>')
    parts.append(f'<text class="m" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 5}">{escape(x_label)}</text>')
    return _frame(title, f"{title}: {sum(counts)} values between {_number(low)} and {_number(high)} {x_label}", parts)


def _frame(title: str, spoken: str, parts: list[str]) -> str:
    spoken = escape(spoken.strip(), quote=True)
    heading = f'<text class="t" x="{LEFT}" y="18">{escape(title)}</text>'
    opening = f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{spoken}">'
    return f"{opening}{heading}{''.join(parts)}</svg>"


def _bins(points: list[tuple[float, float]]) -> list[tuple[float, float, float, float]]:
    """(x, mean, minimum, maximum) of at most BINS runs of neighbouring points."""
    length = math.ceil(len(points) / BINS)
    runs = [points[start : start + length] for start in range(0, len(points), length)]
    return [
        (
            sum(a for a, _ in run) / len(run),
            sum(b for _, b in run) / len(run),
            min(b for _, b in run),
            max(b for _, b in run),
        )
        for run in runs
    ]


def _axis(low: float, high: float, *, whole: bool = False, snug: bool = False) -> tuple[float, float, float, list[float]]:
    """(low, high, step, ticks) of an axis, ticks at 1, 2 or 5 times a power of ten; `snug` ends where the data ends."""
    if high - low < 1e-9 * max(abs(low), abs(high), 1e-300):
        margin = 1.0 if whole else abs(low) * 0.5 or 1.0
        low, high = low - margin, high + margin
    rough = (high - low) / 4
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    if whole and step > 0.5:
        step = max(1.0, round(step))
    start, end = (low, high) if snug else (math.floor(low / step) * step, math.ceil(high / step) * step)
    first = math.ceil(start / step - 1e-9)
    return start, end, step, [index * step for index in range(first, math.floor(end / step + 1e-9) + 1)]


def _number(value: float, step: float | None = None) -> str:
    """A short decimal: enough digits to tell neighbours `step` apart, else four; as a power of ten where shorter."""
    if abs(value) < 1e-9 * (step or 1e-300):
        return "0"
    digits = 4
    if step:
        digits = max(1, math.floor(math.log10(abs(value)) + 1e-9) - math.floor(math.log10(step) + 1e-9) + 1)
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    short = f"{mantissa.rstrip('0').rstrip('.') if '.' in mantissa else mantissa}e{int(exponent)}"
    plain = f"{value:.{max(0, digits - 1 - int(exponent))}f}"
    plain = plain.rstrip("0").rstrip(".") if "." in plain else plain
    return short if len(short) < len(plain) and not 1e-4 < abs(value) < 1e5 else plain
