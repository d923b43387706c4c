"""One run: what it is at, its curves, steps, log and recipe; all of it follows a run that goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import orjson
from markupsafe import Markup
from nicegui import ui

from catena.console import cells, parts
from catena.console.page import page
from catena.console.pages.panels import Source, panels
from catena.console.parts import Column
from catena.console.read.books import Books, books
from catena.console.read.logs import LogLine, log_of
from catena.console.read.runs import RunState, StepState, flat
from catena.console.view import View
from catena.core.types import DatasetVersion, ModelVersion

REFRESH_S = 2.0
TABS = ("curves", "steps", "log", "recipe")
LOG_LINES = 400
SLOW_BYTES = 12_000_000
"""From so many unread bytes of events on, the page does not wait for the curves: a tenth of a second and more."""
Refresh = Callable[[RunState], Awaitable[None]]


@page(name="runs", path="/runs/{id}", icon="timeline", action="data", menu=False)
async def run(view: View) -> None:
    """Show one run, in tabs."""
    book, group = books(view.workspace), view.parameters["id"]
    found: RunState = await parts.read(book.runs.one, group)
    tab = view.query.get("tab", "")
    if tab not in TABS:
        tab = "curves" if any(step.stage.startswith("train.") for step in found.steps) else "steps"
    reading = await _read_ahead(book, found) if tab == "curves" else None
    over = cells.link(view.href("runs"), view.say("runs.title"))
    with parts.heading(found.recipe or group, cells.code(group), over=over):
        _acts(view, book, found)
    figures, progress = parts.figures([]), parts.html("")

    async def head(now: RunState, *, quick: bool = False) -> None:
        figures.content = str(_figures(view, now))
        live = now.state == "running" and not quick
        told = (await parts.read(book.curves.progress, now)) if live else {}
        progress.content = str(_progress(view, now, told))
        progress.set_visibility(bool(progress.content))

    await head(found, quick=reading is not None and reading.slow)  # its progress stands in what is read now
    parts.tabs(view, [(name, view.say(f"runs.tab_{name}")) for name in TABS], tab, "runs", group)
    if reading is not None:
        refresh = await _curves(view, book, found, reading)
        if reading.slow:
            await head(found)
    else:
        refresh = await {"steps": _steps, "log": _log, "recipe": _recipe}[tab](view, book, found)
    if found.state != "running":
        return

    async def again() -> None:
        now = await parts.read(book.runs.one, group)
        await head(now)
        await refresh(now)
        if now.state != "running":
            timer.deactivate()

    timer = parts.live(view, REFRESH_S, again, "data")


def _acts(view: View, book: Books, found: RunState) -> None:
    report = book.runs.folder(found.group) / "report.html"
    if report.exists():

        def download() -> None:
            view.need("data")
            ui.download.content(report.read_bytes(), f"{found.group}.html", "text/html")

        parts.button(view.say("runs.report"), download, icon="download")
    others = [run for run in book.runs.find(limit=20).rows if run.group != found.group]
    if others:
        options = {run.group: f"{run.recipe or run.group} · {run.group.rpartition('-')[2]}" for run in others}

        def go(event: Any) -> None:
            if event.value:
                ui.navigate.to(view.path("runs", "compare", runs=f"{found.group},{event.value}"))

        select = ui.select(options, label=view.say("runs.compare_with"), on_change=go)
        select.props("dense outlined options-dense").classes("c-comparewith")


def _figures(view: View, found: RunState) -> Markup:
    at = found.at
    steps = f"{found.finished:,} / {len(found.steps):,}"
    state = cells.status(view.language, found.state)
    items = [
        (view.say("runs.state"), state, at.step if at is not None and found.state != "done" else ""),
        (view.say("runs.steps_done"), steps, ""),
        (view.say("runs.took"), cells.duration(view.language, found.seconds), ""),
        (view.say("runs.started"), cells.when(view.language, found.started), ""),
    ]
    one = Markup('<div class="c-figure"><dt>{}</dt><dd>{}</dd>{}</div>')
    below = Markup('<p class="c-sub">{}</p>')
    made = Markup("").join(one.format(name, value, below.format(sub) if sub else "") for name, value, sub in items)
    failed = next((step for step in found.steps if step.error), None)
    if failed is None or found.state in ("running", "done"):
        return made
    icon = Markup('<i class="material-icons" aria-hidden="true">error_outline</i>')
    trouble = Markup('<div class="c-trouble c-across" role="alert">{}<div><strong>{}</strong><p>{}</p></div></div>')
    return made + trouble.format(icon, failed.step, failed.error)


def _progress(view: View, found: RunState, told: dict[str, dict[str, Any]]) -> Markup:
    """Return what the running step says of itself: how far, how fast, how long still."""
    at = next((step for step in found.steps if step.state == "running"), None)
    said = told.get(at.step) if at is not None else None
    if at is None or not said:
        return Markup("")
    done, total = said.get("done") or 0, said.get("total")
    words = [f"{done:,} / {total:,} {said.get('unit') or ''}" if total else f"{done:,} {said.get('unit') or ''}"]
    if said.get("rate"):
        words.append(view.say("runs.rate", rate=cells.number(float(said["rate"]), 3)))
    if said.get("seconds_left") is not None:
        words.append(view.say("runs.left", time=cells.duration(view.language, float(said["seconds_left"]))))
    share = min(1.0, done / total) if total else 0.0
    bar = Markup('<div class="c-progress"><i style="width:{:.1f}%"></i></div>').format(100 * share) if total else ""
    title = Markup("<b>{}</b> <span class='c-sub'>{}</span>").format(at.step, said.get("label") or at.stage)
    line = Markup('<div class="c-progressline"><span>{}</span><span class="c-sub">{}</span></div>')
    return Markup('<div class="c-card" role="status">{}{}</div>').format(line.format(title, " · ".join(words)), bar)


@dataclass(frozen=True)
class _Reading:
    """The metrics of a run, which are read while its page is made."""

    slow: bool
    """Whether there is so much to read that the page does not wait for it."""
    metrics: asyncio.Future[dict[str, list[str]]]


async def _read_ahead(book: Books, found: RunState) -> _Reading:
    slow = await parts.read(book.curves.unread, found) > SLOW_BYTES
    metrics = asyncio.ensure_future(parts.read(book.curves.metrics, found))
    metrics.add_done_callback(lambda done: done.cancelled() or done.exception())  # a page that went away asks no more
    return _Reading(slow, metrics)


async def _curves(view: View, book: Books, found: RunState, reading: _Reading) -> Refresh:
    if reading.slow:
        with parts.card() as waiting:
            parts.empty(view.say("runs.reading"))
            ui.echart({}).classes("c-early").props('aria-hidden="true"')  # what draws comes while what is drawn is read
        await ui.context.client.connected()  # the page is there; the curves come to it
        metrics = await reading.metrics
        if waiting.is_deleted:  # whoever asked has gone away meanwhile
            return _nothing
        waiting.delete()
    else:
        metrics = await reading.metrics
    if not metrics:
        with parts.card():
            parts.empty(view.say("runs.no_curves"))
    made = []
    for step, names in metrics.items():
        with parts.card() as box:
            top = ui.element("div").classes("c-tools")
            sources = {name: [Source(name, found, found.step(step), name)] for name in names}
            shown = await panels(view, book.curves, sources)
            with top:
                parts.html(Markup("<h2>{}</h2>").format(view.say("runs.curves_of", step=step)))
                ui.element("div").classes("c-grow")
                ui.switch(view.say("runs.log_scale"), on_change=_logarithmic(shown)).props("dense size=sm")
        del box
        made += shown
    if metrics:
        parts.html(view.say("runs.zoom_hint"), tag="p").classes("c-sub")

    async def refresh(now: RunState) -> None:
        for panel in made:
            panel.replace(now)
            await panel.refresh()
        if not made and await parts.read(book.curves.metrics, now):
            ui.navigate.reload()  # the first curve has come

    return refresh


async def _nothing(_: RunState) -> None:
    """Refresh nothing."""


def _logarithmic(shown: list[Any]) -> Callable[[Any], Awaitable[None]]:
    async def switched(event: Any) -> None:
        for panel in shown:
            panel.log = bool(event.value)
        for panel in shown:
            await panel.refresh()

    return switched


async def _steps(view: View, book: Books, found: RunState) -> Refresh:
    heads = [
        Column(view.say("runs.step")),
        Column(view.say("runs.state")),
        Column(view.say("runs.output"), wide=True, phone=False),
        Column(view.say("runs.took"), "right"),
    ]
    chosen = view.query.get("step", "")
    step = next((one for one in found.steps if one.step == chosen and one.id), None)
    if step is not None:
        _step(view, step, await parts.read(_inputs, view, book, step))
    with parts.card():
        table = parts.html(parts.table_html(heads, await parts.read(_step_rows, view, book, found)))

    async def refresh(now: RunState) -> None:
        table.content = str(parts.table_html(heads, await parts.read(_step_rows, view, book, now)))

    return refresh


def _step_rows(view: View, book: Books, found: RunState) -> list[list[object]]:
    rows: list[list[object]] = []
    for step in found.steps:
        href = view.href("runs", found.group, tab="steps", step=step.step)
        named = cells.link(href, step.step) if step.id else step.step
        state = cells.status(view.language, step.state) if step.id else cells.badge(view.say("runs.waiting"))
        name = cells.stack(named, step.stage)
        rows.append([name, state, _output(view, book, step), cells.duration(view.language, step.seconds)])
    return rows


def _output(view: View, book: Books, step: StepState) -> object:
    if step.error:
        return Markup('<span class="c-down">{}</span>').format(step.error)
    return _artifact(view, book, step.output, step.name) if step.output else cells.NOTHING


def _artifact(view: View, book: Books, digest: str, name: str = "") -> Markup:
    """Return a link to the page of an artifact."""
    artifact = book.runs.store.index.artifact(digest)
    rows = book.runs.store.index.versions(digest=digest)
    mine = [row for row in rows if row.name == name] or rows
    label = f"{mine[-1].name}@{mine[-1].version}" if mine else digest[:10]
    if isinstance(artifact, DatasetVersion):
        return cells.link(view.href("datasets", label if mine else digest), label)
    if isinstance(artifact, ModelVersion):
        return cells.link(view.href("models", label if mine else digest), label)
    if artifact is not None:
        return cells.link(view.href("evaluation", digest), label)
    return cells.digest(digest)


def _inputs(view: View, book: Books, step: StepState) -> list[tuple[object, object]]:
    return [(name, _artifact(view, book, digest)) for name, digest in step.inputs.items()]


def _step(view: View, step: StepState, inputs: list[tuple[object, object]]) -> None:
    metrics = {key: value for key, value in step.metrics.items() if key != "origin"}
    with ui.element("div").classes("c-stack"):
        with parts.card(step.step, step.stage):
            machine = ", ".join(str(value) for key, value in step.machine.items() if key != "pid")
            numbers = [(name, cells.count(value) if _number(value) else str(value)) for name, value in metrics.items()]
            seed = (view.say("runs.seed"), str(step.seed))
            parts.facts([*inputs, seed, *numbers, (view.say("runs.machine"), machine)])
            if step.error:
                parts.trouble(step.error, "")
        with parts.card(view.say("runs.config")):
            values = [(cells.code(key), cells.code(_told(value), 400)) for key, value in flat(step.config).items()]
            parts.facts(values).classes("c-two") if values else parts.empty(view.say("runs.no_config"))


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _told(value: Any) -> str:
    return orjson.dumps(value, default=str).decode()


async def _log(view: View, book: Books, found: RunState) -> Refresh:
    asked = {"search": "", "step": view.query.get("step", "")}
    turns = parts.Turns()

    async def ask() -> None:
        newest = turns.ask()
        log = await parts.read(_read_log, book, found.group, asked["search"], asked["step"])
        if not newest():
            return
        place.content = view.say("runs.log_lines", shown=f"{len(log.lines):,}", total=f"{log.total:,}")
        body.content = str(_log_html(view, log.lines))

    async def searched(event: Any) -> None:
        asked["search"] = event.value or ""
        await ask()

    async def chosen(event: Any) -> None:
        asked["step"] = event.value or ""
        await ask()

    with parts.card():
        with ui.element("div").classes("c-tools"):
            label = view.say("parts.search")
            box = ui.input(placeholder=label, on_change=searched).props("dense outlined clearable debounce=250")
            box.classes("c-search").props(f'aria-label="{label}"')
            names = {"": view.say("runs.all_steps")} | {step.step: step.step for step in found.steps}
            select = ui.select(names, value=asked["step"] if asked["step"] in names else "", on_change=chosen)
            select.props(f'dense outlined options-dense aria-label="{view.say("runs.step")}"').classes("c-search")
            ui.element("div").classes("c-grow")
            place = parts.html("").classes("c-place").props('aria-live="polite"')
        body = parts.html("").classes("c-log").props('tabindex="0" role="log"')
    await ask()

    async def refresh(now: RunState) -> None:
        await ask()

    return refresh


def _read_log(book: Books, group: str, search: str, step: str) -> Any:
    return log_of(book.curves.follow(group), search=search, step=step, most=LOG_LINES)


def _log_html(view: View, shown: tuple[LogLine, ...]) -> Markup:
    """Return the lines, newest first: the end of a log is what is looked for."""
    if not shown:
        return Markup('<p class="c-empty">{}</p>').format(view.say("parts.none_found"))
    one = Markup('<div class="c-logline c-log{}"><time title="{}">{}</time><b>{}</b><span>{}</span></div>')
    return Markup("").join(
        one.format(
            line.level, line.at.isoformat(), line.at.strftime("%H:%M:%S"), line.step, cells.text(line.text, 4000)
        )
        for line in reversed(shown)
    )


async def _recipe(view: View, book: Books, found: RunState) -> Refresh:
    path = book.runs.folder(found.group) / "recipe.yaml"
    with parts.card(view.say("runs.recipe"), view.say("runs.recipe_lead")):
        try:
            text = await parts.read(path.read_text, "utf-8")
        except FileNotFoundError:
            text = ""
        parts.code(text) if text.strip() else parts.empty(view.say("runs.no_recipe"))

    async def refresh(now: RunState) -> None:
        return

    return refresh
