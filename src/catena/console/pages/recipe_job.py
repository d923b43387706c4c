"""A run that was started here: its steps as they go, its log, and the button that stops it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from markupsafe import Markup
from nicegui import ui

from catena.console import cells, jobs, parts
from catena.console.page import page
from catena.console.parts import Column
from catena.console.read.audit import acted
from catena.console.view import View

EVERY_S = 1.0
MOST_METRICS = 3


@page(name="recipes", path="/recipes/jobs/{id}", icon="schema", action="data", menu=False)
async def recipe_job(view: View) -> None:
    """Show a run that was started here, live."""
    await Watch(view, await parts.read(jobs.job, view.workspace.store, view.parameters["id"])).draw()


class Watch:
    """One job in one window."""

    def __init__(self, view: View, job: jobs.Job) -> None:
        self.view, self.job, self.store = view, job, view.workspace.store
        self.told = jobs.Progress()
        self.state: jobs.State = "running"

    async def draw(self) -> None:
        """Draw the page."""
        view, job = self.view, self.job
        above = cells.link(view.href("recipes"), view.say("recipes.title"))
        lead = Markup("{} · {}").format(cells.when(view.language, job.at), job.by)
        with parts.heading(job.recipe, lead, over=above):
            self.badge = parts.html("").props('role="status"')
            self.link = parts.html("")
            self.stop = parts.button(view.say("recipes.stop"), self._stop, icon="stop", tone="bad")
        with parts.card(view.say("recipes.steps")):
            self.steps = parts.html("")
        with parts.columns(380):
            with parts.card(view.say("recipes.log")):
                self.log = parts.html("")
            self.trouble = parts.card(view.say("recipes.errors"))
            with self.trouble:
                self.errors = parts.html("")
        await self.refresh()
        if self.state == "running":
            self.timer = parts.live(view, EVERY_S, self.refresh, "data")

    async def refresh(self) -> None:
        """Read on, and show it."""
        view = self.view
        self.state = await parts.read(jobs.state, self.store, self.job)  # first: who has ended has said all
        self.told = await parts.read(jobs.follow, self.store, self.job, self.told)
        _set(self.badge, cells.status(view.language, self.state))
        if self.told.group:
            _set(self.link, parts.link_button(view, view.say("recipes.to_run"), "runs", self.told.group))
        self.stop.set_visibility(self.state == "running" and view.may("push"))
        _set(self.steps, self._table())
        lines = "\n".join(self.told.log[-100:])
        _set(self.log, Markup('<pre class="c-pre">{}</pre>').format(lines or view.say("recipes.no_log")))
        said = self._errors() if self.state != "running" else ""
        self.trouble.set_visibility(bool(said))
        _set(self.errors, Markup('<pre class="c-pre c-wrap">{}</pre>').format(said))
        if self.state != "running" and hasattr(self, "timer"):
            self.timer.deactivate()

    def _errors(self) -> str:
        error = (self.told.end or {}).get("error") or {}
        told = "\n".join(str(error[name]) for name in ("message", "hint") if error.get(name))
        return f"{told}\n{jobs.errors(self.store, self.job)}".strip()

    def _table(self) -> Markup:
        view = self.view
        heads = [
            Column(view.say("recipes.step"), wide=True),
            Column(view.say("recipes.state")),
            Column(view.say("recipes.progress"), phone=False),
            Column(view.say("recipes.time"), "right"),
        ]
        rows = []
        for step in self.told.steps.values():
            status = step.status
            if status == "running" and self.state != "running":
                status = self.state
            badge = cells.status(view.language, status) if status else cells.badge(view.say("recipes.waiting"))
            rows.append([cells.stack(step.key, step.ref or step.stage), badge, self._progress(step), self._time(step)])
        return parts.table_html(heads, rows)

    def _progress(self, step: jobs.StepState) -> Markup:
        told: Mapping[str, Any] = step.progress
        if step.message:
            return cells.text(step.message, 300)
        if not told or step.status != "running":
            curves = [f"{name} {cells.number(value)}" for name, value in list(step.metrics.items())[:MOST_METRICS]]
            return cells.text(", ".join(curves))
        done, total = int(told.get("done") or 0), told.get("total")
        shown = f"{done:,} / {total:,} {told.get('unit', '')}" if total else f"{done:,} {told.get('unit', '')}"
        left = told.get("seconds_left")
        more = view_left(self.view, left) if left is not None else ""
        bar = cells.bar(done / total, shown) if total else cells.text(shown)
        loss = [f"{name} {cells.number(value)}" for name, value in list(step.metrics.items())[:MOST_METRICS]]
        return cells.stack(bar, ", ".join(filter(None, [str(told.get("label") or ""), more, *loss])))

    def _time(self, step: jobs.StepState) -> Markup:
        return cells.duration(self.view.language, step.seconds) if step.seconds is not None else cells.NOTHING

    async def _stop(self) -> None:
        view = self.view
        view.need("push")
        title, text = view.say("recipes.stop_title"), view.say("recipes.stop_text")
        if await parts.confirm(view, title, text, view.say("recipes.stop"), tone="bad"):
            view.need("push")
            await parts.read(jobs.stop, self.store, self.job)
            parts.toast(view.say("recipes.stopping"))
            told = {"recipe": self.job.recipe, "run": self.job.id}
            await parts.read(partial(acted, view.workspace, view.person.subject, "recipe.stop", **told))


def view_left(view: View, seconds: float) -> str:
    """Return how long something takes yet."""
    return view.say("recipes.left", time=cells.duration(view.language, seconds))


def _set(shown: ui.html, content: Markup) -> None:
    """Send a content where it is another than before."""
    if shown.content != str(content):
        shown.content = str(content)
