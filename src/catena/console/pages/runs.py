"""Runs: the list, which of them to compare, and several side by side."""

from __future__ import annotations

from typing import Any

import orjson
from markupsafe import Markup
from nicegui import ui

from catena.console import cells, parts
from catena.console.page import page
from catena.console.pages.panels import Source, panels
from catena.console.parts import Column, Slice
from catena.console.read.books import books
from catena.console.read.runs import ABSENT, STATES, RunState, differences
from catena.console.view import View
from catena.core.errors import UsageError

MOST_COMPARED = 6
REFRESH_S = 3.0
LONG = 160
"""Characters of a setting that a table shows."""


@page(name="runs", path="/runs", icon="timeline", action="data")
async def runs(view: View) -> None:
    """List the runs, newest first."""
    book = books(view.workspace).runs
    counts = await parts.read(book.counts)
    acts = parts.heading(view.say("runs.title"), view.say("runs.lead"))
    if not counts:
        with parts.card():
            parts.empty(view.say("runs.none"), "catena run recipes/python-helper.yaml")
        return
    picked: dict[str, None] = {}
    only = {"state": view.query.get("state", "")}

    def load(offset: int, limit: int, search: str) -> Slice:
        found = book.find(search=search, state=only["state"], offset=offset, limit=limit)
        return Slice([_row(view, run, run.group in picked) for run in found.rows], found.total)

    heads = [
        Column(""),
        Column(view.say("runs.run"), wide=True),
        Column(view.say("runs.state")),
        Column(view.say("runs.steps"), "right", phone=False),
        Column(view.say("runs.started"), "right"),
        Column(view.say("runs.took"), "right", phone=False),
    ]
    with parts.card():
        shown = await parts.paged(view, heads, load, search=True)
        with shown.tools:
            _states(view, counts, only, shown)
    with acts:
        _comparing(view, picked)
    parts.live(view, REFRESH_S, shown.refresh, "data")


def _states(view: View, counts: Any, only: dict[str, str], shown: parts.Paged) -> None:
    options = {"": f"{view.say('runs.all_states')} ({sum(counts.values()):,})"}
    options |= {state: f"{view.say(f'parts.status_{state}')} ({counts[state]:,})" for state in STATES if counts[state]}

    async def chosen(event: Any) -> None:
        only["state"] = event.value or ""
        await shown.restart()

    value = only["state"] if only["state"] in options else ""
    select = ui.select(options, value=value, on_change=chosen).props("dense outlined options-dense")
    select.classes("c-choice").props(f'aria-label="{view.say("runs.state")}"')


def _comparing(view: View, picked: dict[str, None]) -> None:
    """Show the button that compares what is ticked."""

    def go() -> None:
        ui.navigate.to(view.path("runs", "compare", runs=",".join(picked)))

    button = parts.button(view.say("runs.compare"), go, icon="stacked_line_chart")

    def ticked(event: Any) -> None:
        told = event.args if isinstance(event.args, dict) else {}
        group = str(told.get("group", ""))
        if told.get("on"):
            picked[group] = None
        else:
            picked.pop(group, None)
        button.set_text(f"{view.say('runs.compare')} ({len(picked)})" if picked else view.say("runs.compare"))
        button.set_enabled(2 <= len(picked) <= MOST_COMPARED)

    button.set_enabled(False)
    button.tooltip(view.say("runs.compare_hint", most=MOST_COMPARED))
    ui.on("run_picked", ticked)


def _row(view: View, run: RunState, picked: bool) -> list[object]:
    tick = Markup(
        '<input type="checkbox" class="c-pick" value="{}" aria-label="{}"{} '
        "onchange=\"emitEvent('run_picked', {{group: this.value, on: this.checked}})\">"
    ).format(run.group, view.say("runs.pick", run=run.group), Markup(" checked") if picked else "")
    named = cells.link(view.href("runs", run.group), run.recipe or run.group)
    at = run.at
    below = [cells.code(run.group)]
    if at is not None and run.state != "done":
        below.append(Markup("{}{}").format(f"{at.step}", f": {at.error}" if at.error else ""))
    steps = f"{run.finished:,} / {len(run.steps):,}"
    done = cells.bar(run.finished / len(run.steps), steps) if run.state == "running" else steps
    return [
        tick,
        cells.stack(named, *below),
        cells.status(view.language, run.state),
        done,
        cells.when(view.language, run.started),
        cells.duration(view.language, run.seconds),
    ]


@page(name="runs", path="/runs/compare", icon="timeline", action="data", menu=False)
async def compare(view: View) -> None:
    """Show several runs side by side: their curves in the same panels, and the settings in which they differ."""
    book = books(view.workspace)
    groups = [group for group in dict.fromkeys(view.query.get("runs", "").split(",")) if group]
    over = cells.link(view.href("runs"), view.say("runs.title"))
    parts.heading(view.say("runs.comparison"), over=over)
    if not 1 < len(groups) <= MOST_COMPARED:
        raise UsageError(view.say("runs.compare_hint", most=MOST_COMPARED))
    chosen = [await parts.read(book.runs.one, group) for group in groups]
    labels = _labels(chosen)
    heads = [Column(""), *(Column(label) for label in labels)]
    with parts.card(view.say("runs.compared")):
        parts.table(heads, _facts(view, chosen))
    found = [await parts.read(book.curves.metrics, run) for run in chosen]
    names = dict.fromkeys((step, metric) for metrics in found for step in metrics for metric in metrics[step])
    groups_of: dict[str, dict[str, list[Source]]] = {}
    for step, metric in names:
        sources = [
            Source(label, run, run.step(step), metric)
            for label, run, metrics in zip(labels, chosen, found, strict=True)
            if metric in metrics.get(step, ())
        ]
        groups_of.setdefault(step, {})[metric] = sources
    for step, metrics in groups_of.items():
        with parts.card(view.say("runs.curves_of", step=step)):
            await panels(view, book.curves, metrics, means_only=True)
    with parts.card(view.say("runs.settings"), view.say("runs.settings_lead")):
        rows = differences(chosen)
        if not rows:
            parts.empty(view.say("runs.same_settings"))
            return
        heads = [Column(view.say("runs.step")), Column(view.say("runs.setting")), *(Column(label) for label in labels)]
        parts.table(heads, [[row.step, cells.code(row.field), *map(_value, row.values)] for row in rows])


def _labels(chosen: list[RunState]) -> list[str]:
    """Return what runs are called in legends: the recipe where it tells them apart, and the id's beginning."""
    recipes = {run.recipe for run in chosen}
    shorts = [run.group.rpartition("-")[2] for run in chosen]
    return [f"{run.recipe} {short}" if len(recipes) > 1 else short for run, short in zip(chosen, shorts, strict=True)]


def _facts(view: View, chosen: list[RunState]) -> list[list[object]]:
    return [
        [view.say("runs.run"), *(cells.link(view.href("runs", run.group), run.recipe or run.group) for run in chosen)],
        [view.say("runs.state"), *(cells.status(view.language, run.state) for run in chosen)],
        [view.say("runs.started"), *(cells.when(view.language, run.started) for run in chosen)],
        [view.say("runs.took"), *(cells.duration(view.language, run.seconds) for run in chosen)],
    ]


def _value(value: Any) -> Markup:
    return cells.NOTHING if value is ABSENT else cells.code(orjson.dumps(value, default=str).decode(), LONG)
