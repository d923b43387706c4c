"""Panels of curves: one chart for each metric, thinned on the server, that samples again what is zoomed into."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup
from nicegui import ui

from catena.console import cells, parts
from catena.console.charts import COLOURS, Floats, lines
from catena.console.read.curves import CurveBook, Drawn
from catena.console.read.runs import RunState, StepState
from catena.console.view import View

COARSE = 400
"""Points of the rest of a curve while a part of it is zoomed into."""
THROTTLE_S = 0.25
LOSSES = ("loss", "val_loss")
"""Drawn together."""


@dataclass(frozen=True)
class Source:
    """A curve of a panel."""

    label: str
    run: RunState
    step: StepState
    metric: str


class Panel:
    """A chart that can be looked at more closely, and follows a run that goes on."""

    def __init__(self, view: View, curves: CurveBook, title: str, sources: Sequence[Source], means_only: bool) -> None:
        self._view, self._curves, self._sources, self._means_only = view, curves, list(sources), means_only
        self._window: tuple[float, float] | None = None
        self._seen: object = None
        self._turns, self._zooms = parts.Turns(), parts.Turns()
        self.log = False
        with ui.element("div").classes("c-panel"):
            self._head = parts.html("").classes("c-panelhead")
            self._chart = ui.echart(self._options([])).classes("c-chart c-curves")
        self._title = title
        self._chart.on("chart:datazoom", self._zoomed, throttle=THROTTLE_S, leading_events=False)

    def replace(self, run: RunState) -> None:
        """Look at a run as it stands now."""
        self._sources = [
            Source(one.label, run, run.step(one.step.step), one.metric) if one.run.group == run.group else one
            for one in self._sources
        ]

    async def refresh(self, *, force: bool = False) -> None:
        """Draw what is new; nothing is sent where nothing is."""
        newest, window = self._turns.ask(), self._window
        found = await parts.read(self._read, window)
        if not newest():
            return
        seen = [(drawn.total, drawn.last, drawn.ends) for drawn in found], window, self.log
        if seen == self._seen and not force:
            return
        self._seen = seen
        self._chart.options.update(self._options(found))
        self._chart.update()
        self._head.content = str(self._headed(found))

    def _read(self, window: tuple[float, float] | None) -> list[Drawn]:
        ends = window or (None, None)
        return [
            self._curves.drawn(one.run, one.step, one.metric, low=ends[0], high=ends[1], coarse=COARSE)
            for one in self._sources
        ]

    def _headed(self, found: Sequence[Drawn]) -> Any:
        last = [cells.number(drawn.last) for drawn in found if drawn.last is not None]
        broken = sum(len(drawn.broken) for drawn in found)
        marks = (
            [cells.badge(self._view.say("runs.broken", n=broken, at=self._first_broken(found)), "bad")]
            if broken
            else []
        )
        value = Markup('<span class="c-last">{}</span>').format(" / ".join(last)) if len(last) <= 2 else ""
        return cells.join(Markup("<h3>{}</h3>").format(self._title), value, *marks)

    def _first_broken(self, found: Sequence[Drawn]) -> str:
        return f"{min(at for drawn in found for at in drawn.broken):,}"

    def _options(self, found: Sequence[Drawn]) -> dict[str, Any]:
        dark = parts.is_dark(self._view)
        options = lines([], dark=dark, x="", log=self.log)
        ends = [drawn.ends for drawn in found if drawn.ends is not None]
        if ends:  # of the curves, and not of the means that may be drawn in their place
            options["xAxis"] |= {"min": min(end[0] for end in ends), "max": max(end[1] for end in ends)}
        # An axis makes up its ends, 0 and 1, where it has none: no labels before there are two samples.
        options["xAxis"]["axisLabel"]["show"] = any(first < last for first, last in ends)
        options["yAxis"]["axisLabel"]["show"] = bool(ends)
        options["series"] = [line for at, drawn in enumerate(found) for line in self._lines(at, drawn)]
        many = len(found) > 1
        options["legend"] = {**options["legend"], "show": many, "data": [one.label for one in self._sources]}
        options["grid"] = {**options["grid"], "top": 34 if many else 12, "bottom": 30}
        back, ink = ("#2c363f", "#9aa7b2") if dark else ("#e6eaee", "#5b6874")
        options["dataZoom"] = [
            {"type": "inside", "zoomOnMouseWheel": "shift", "moveOnMouseWheel": False, "filterMode": "none"},
            {
                "type": "slider", "height": 14, "bottom": 4, "filterMode": "none", "showDetail": False,
                "brushSelect": False, "borderColor": back, "fillerColor": f"{COLOURS[0]}22",
                "handleStyle": {"color": ink, "borderColor": ink}, "moveHandleSize": 0,
                "dataBackground": {"lineStyle": {"opacity": 0}, "areaStyle": {"opacity": 0}},
                "selectedDataBackground": {"lineStyle": {"opacity": 0}, "areaStyle": {"opacity": 0}},
            },
        ]  # fmt: skip
        return options

    def _lines(self, at: int, drawn: Drawn) -> list[dict[str, Any]]:
        colour = COLOURS[at % len(COLOURS)]
        name = self._sources[at].label
        level, whole = drawn.level, (drawn.x, drawn.y)
        if not len(level[0]):
            return [self._line(name, whole, colour, 1.7, 1.0)]
        if self._means_only:
            return [self._line(name, level, colour, 1.8, 1.0)]
        mean = self._view.say("runs.mean", name=name)
        return [self._line(name, whole, colour, 1.0, 0.38), self._line(mean, level, colour, 1.9, 1.0)]

    def _line(self, name: str, points: tuple[Floats, Floats], colour: str, width: float, ink: float) -> dict[str, Any]:
        x, y = points
        if self.log:
            x, y = x[y > 0], y[y > 0]
        pairs = np.column_stack([x, np.round(y, 9)]).tolist()
        return {
            "type": "line",
            "name": name,
            "data": pairs,
            "showSymbol": len(pairs) < 40,
            "symbolSize": 5,
            "itemStyle": {"color": colour},
            "lineStyle": {"width": width, "color": colour, "opacity": ink},
            "emphasis": {"disabled": True},
            "animation": False,
        }

    async def _zoomed(self, event: Any) -> None:
        """Sample again what is looked at now; `event` tells percents of the whole curve."""
        told = event.args if isinstance(event.args, dict) else {}
        part = (told.get("batch") or [told])[0]
        low, high = float(part.get("start") or 0.0), float(part.get("end") or 100.0)
        newest = self._zooms.ask()
        ends = [drawn.ends for drawn in await parts.read(self._read, self._window) if drawn.ends is not None]
        if not ends or not newest():
            return
        first, last = min(end[0] for end in ends), max(end[1] for end in ends)
        if low <= 0 and high >= 100:
            self._window = None
        else:
            self._window = first + (last - first) * low / 100, first + (last - first) * high / 100
        await self.refresh()


async def panels(
    view: View, curves: CurveBook, metrics: Mapping[str, Sequence[Source]], *, means_only: bool = False
) -> list[Panel]:
    """Show a panel for each metric; the losses of one run stand in one. Returns them, to be refreshed."""
    groups: dict[str, list[Source]] = {}
    for name, sources in metrics.items():
        together = name in LOSSES and len(sources) == 1
        groups.setdefault("loss" if together else name, []).extend(sources)
    made = []
    with ui.element("div").classes("c-panels"):
        for name, sources in groups.items():
            title = view.say(f"runs.metric_{name}")
            title = name if title.startswith("runs.metric_") else title
            made.append(Panel(view, curves, title, sources, means_only))
    for panel in made:
        await panel.refresh()
    return made
