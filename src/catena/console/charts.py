"""Charts: options for ECharts from curves of any length, thinned on the server to what a screen shows. No NiceGUI."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

MOST_POINTS = 2000
"""Points of one curve that go to the browser."""
COLOURS = ("#0f8a7e", "#c4682b", "#5a6fd0", "#b0448a", "#8a8f2e", "#4d93c7", "#a0522d", "#6b7a86")
"""Told apart on light and dark, and by most who see few colours."""
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """One line of a chart. `x` ascends; both are `[points]`; `y` may have NaN, which makes a gap."""

    name: str
    x: Sequence[float] | Floats
    y: Sequence[float] | Floats
    dashed: bool = False


def thin(x: Sequence[float] | Floats, y: Sequence[float] | Floats, most: int = MOST_POINTS) -> tuple[Floats, Floats]:
    """Return at most `most` points of a curve that look like all of them: the lowest and the highest of each stretch.

    Every peak stays (LTTB would lose some), the first and the last point too. O(points), 1 million in some 10 ms.
    """
    xs, ys = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    count = len(xs)
    if count <= most:
        return xs, ys
    stretches = max(1, (most - 2) // 2)
    width = -(-(count - 2) // stretches)
    inner = ys[1:-1]
    padded = np.full(-(-len(inner) // width) * width, np.nan)
    padded[: len(inner)] = inner
    rows = padded.reshape(-1, width)
    start = np.arange(len(rows)) * width + 1
    lowest = start + np.argmin(np.where(np.isnan(rows), np.inf, rows), axis=1)
    highest = start + np.argmax(np.where(np.isnan(rows), -np.inf, rows), axis=1)
    kept = np.unique(np.clip(np.concatenate(([0], lowest, highest, [count - 1])), 0, count - 1))
    return xs[kept], ys[kept]


def points(curve: Curve, most: int = MOST_POINTS) -> list[list[float | None]]:
    """Return a curve's thinned points for ECharts; what is no finite number becomes a gap."""
    xs, ys = thin(curve.x, curve.y, most)
    return [[float(x), round(float(y), 8) if np.isfinite(y) else None] for x, y in zip(xs, ys, strict=True)]


def lines(
    curves: Sequence[Curve], *, dark: bool = False, x: str = "", y: str = "", log: bool = False, zoom: bool = True
) -> dict[str, Any]:
    """Return ECharts options for curves over numbers, in the console's colours."""
    return {
        **frame(dark, legend=[curve.name for curve in curves] if len(curves) > 1 else []),
        "tooltip": {"trigger": "axis", "axisPointer": {"type": "line"}, "confine": True, **_box(dark)},
        "xAxis": {"type": "value", "name": x, "min": "dataMin", "max": "dataMax", **_axis(dark, grid=False)},
        "yAxis": {"type": "log" if log else "value", "name": y, "scale": True, **_axis(dark)},
        "dataZoom": [{"type": "inside"}] if zoom else [],
        "series": [
            {
                "type": "line",
                "name": curve.name,
                "data": points(curve),
                "showSymbol": len(curve.x) < 2,
                "lineStyle": {"width": 1.7, **({"type": "dashed"} if curve.dashed else {})},
                "emphasis": {"disabled": True},
                "animation": False,
            }
            for curve in curves
        ],
    }


def frame(dark: bool, legend: Sequence[str] = ()) -> dict[str, Any]:
    """Return what every chart has: colours, room, letters."""
    ink = "#9aa7b2" if dark else "#5b6874"
    return {
        "color": list(COLOURS),
        "animation": False,
        "textStyle": {"fontFamily": "inherit", "color": ink},
        "grid": {"left": 8, "right": 18, "top": 40 if legend else 26, "bottom": 8, "containLabel": True},
        "legend": {
            "show": bool(legend),
            "type": "scroll",
            "top": 0,
            "left": 0,
            "icon": "roundRect",
            "itemWidth": 14,
            "itemHeight": 4,
            "textStyle": {"color": ink},
            "data": list(legend),
        },
    }


def _axis(dark: bool, grid: bool = True) -> dict[str, Any]:
    ink, line = ("#9aa7b2", "#2a333c") if dark else ("#5b6874", "#e6eaee")
    return {
        "nameTextStyle": {"color": ink, "align": "left"},
        "axisLabel": {"color": ink, "hideOverlap": True},
        "axisLine": {"show": not grid, "lineStyle": {"color": line}},
        "axisTick": {"show": False},
        "splitLine": {"show": grid, "lineStyle": {"color": line}},
    }


def _box(dark: bool) -> dict[str, Any]:
    back, line, ink = ("#1f2830", "#3a4650", "#e6ebef") if dark else ("#ffffff", "#d9dee3", "#17212b")
    return {"backgroundColor": back, "borderColor": line, "textStyle": {"color": ink, "fontSize": 12}}
