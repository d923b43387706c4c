"""The editor of a recipe: text with line numbers, checks beside it, saving that loses nothing, starting a run.

What is typed is also kept in the browser (localStorage) until it is saved: a connection that drops, a console that is
started again or a window that was closed loses none of it. It leaves no secret there: recipes hold none. With it stands
the text that it was made from: a draft that is saved over something newer is refused as any other text is.
"""

from __future__ import annotations

import asyncio
import difflib
import json
from functools import partial
from pathlib import Path
from typing import Any

from markupsafe import Markup
from nicegui import ui

from catena.console import cells, jobs, parts
from catena.console.parts import Column
from catena.console.read import recipes as read
from catena.console.read.audit import acted
from catena.console.view import View
from catena.core.errors import UsageError

CHECK_S = 0.6
"""After the last key, in seconds."""
MOST_DIFFERENCES = 400
REASONS = {"new": "new", "another seed": "seed", "the stage's code changed": "code", "other inputs": "inputs"}
DRAFTS = """
(() => {
  const key = %(key)s, name = %(name)s;
  const editor = () => document.querySelector('.c-editor .cm-content')?.cmTile?.view
    ?? document.querySelector('.c-editor .cm-content')?.cmView?.view;
  window.catenaDraft = {saved: %(saved)s, forget() { localStorage.removeItem(key); }};
  const held = JSON.parse(localStorage.getItem(key));
  if (held !== null && held.text !== window.catenaDraft.saved) emitEvent('catena-draft', held);
  setInterval(() => {
    document.querySelector('.c-editor .cm-content')?.setAttribute('aria-label', name);
    const view = editor();
    if (!view) return;
    const text = view.state.doc.toString(), saved = window.catenaDraft.saved;
    if (text === saved) { if (window.catenaDraft.touched) localStorage.removeItem(key); return; }
    window.catenaDraft.touched = true;
    const draft = JSON.stringify({saved, text});
    if (localStorage.getItem(key) !== draft) localStorage.setItem(key, draft);
  }, 500);
  window.addEventListener('beforeunload', event => {
    const view = editor();
    if (view && view.state.doc.toString() !== window.catenaDraft.saved) event.preventDefault();
  });
})();
"""


class Editor:
    """One recipe in one window."""

    def __init__(self, view: View, folder: Path, loaded: read.Text) -> None:
        self.view, self.folder, self.loaded = view, folder, loaded
        self.checked = read.Checked(())
        self.asked = 0
        self.saving = asyncio.Lock()

    async def draw(self) -> None:
        """Draw the page."""
        view = self.view
        above = cells.link(view.href("recipes"), view.say("recipes.title"))
        with parts.heading(self.loaded.name, over=above):
            self.mark = parts.html("")
            if view.may("push"):
                parts.button(view.say("recipes.save"), self.save, icon="save")
                parts.button(view.say("recipes.start"), self.start, icon="play_arrow", main=True)
        self.notes = ui.element("div")
        with parts.columns(420):
            with parts.card().classes("c-editorcard"):
                self.text = ui.codemirror(
                    self.loaded.text,
                    language="YAML",
                    theme="githubDark" if parts.is_dark(view) else "githubLight",
                    indent="  ",
                    on_change=self._typed,
                ).classes("c-editor")
            self.findings = parts.card()
        await self.check()
        ui.on("catena-draft", self._draft)
        key = f"catena-draft:{view.console.prefix}:{self.loaded.name}"
        ui.timer(0.1, lambda: self._watch(key), once=True)

    def _watch(self, key: str) -> None:
        name = json.dumps(self.view.say("recipes.name"))
        ui.run_javascript(DRAFTS % {"key": json.dumps(key), "saved": _script(self.loaded.text), "name": name})

    async def _typed(self) -> None:
        self.asked += 1
        mine = self.asked
        self._mark()
        ui.timer(CHECK_S, lambda: self.check() if mine == self.asked else None, once=True)

    def _mark(self) -> None:
        dirty = self.text.value != self.loaded.text
        self.mark.content = str(cells.badge(self.view.say("recipes.unsaved"), "warn")) if dirty else ""

    async def check(self) -> None:
        """Check the text that stands in the editor, and show what was found."""
        mine, text = self.asked, self.text.value
        found = await parts.read(read.checked, self.view.workspace, self.loaded.name, text)
        if mine != self.asked:
            return
        self.checked = found
        lines = text.count("\n") + 1
        at = {one.line: one.message for one in found.problems if one.line and one.line <= lines}
        # Not as properties: those are sent with the whole text, which writes over what was typed since.
        self.text.run_method("setLineTooltips", at)
        marks = [{"kind": "line", "line": line, "class": "c-wrongline"} for line in at]
        self.text.run_method("setDecorations", marks)
        self.findings.clear()
        with self.findings:
            self._problems() if found.problems else self._plan()

    def _problems(self) -> None:
        view, problems = self.view, self.checked.problems
        title = Markup("<h2>{}</h2><p>{}</p>").format(
            view.say("recipes.problems", n=len(problems)), view.say("recipes.problems_lead")
        )
        parts.html(title).classes("c-cardhead").props('role="status"')
        for one in problems[:50]:
            where = view.say("recipes.line", n=one.line) if one.line else view.say("recipes.whole")
            with ui.element("button").classes("c-problem") as shown:
                parts.html(Markup("<b>{}</b> <span>{}</span>").format(where, one.message), tag="span")
            if one.line:
                shown.on("click", lambda _, line=one.line: self.text.reveal_line(line))

    def _plan(self) -> None:
        view = self.view
        head = Markup("<h2>{}</h2><p>{}</p>").format(view.say("recipes.plan"), view.say("recipes.plan_lead"))
        parts.html(head).classes("c-cardhead").props('role="status"')
        parts.table(
            [Column(view.say("recipes.step")), Column(view.say("recipes.why"), wide=True)],
            [
                [
                    cells.stack(step.step, step.stage),
                    cells.badge(view.say("recipes.cached"))
                    if step.status == "cached"
                    else cells.stack(cells.badge(view.say("recipes.will_run"), "busy"), _reason(view, step.reason)),
                ]
                for step in self.checked.steps
            ],
        )

    async def save(self) -> bool:
        """Save the text over what was loaded; tells whether it was."""
        self.view.need("push")
        if self.saving.locked():
            return False  # pressed twice
        async with self.saving:
            edited = read.Text(self.loaded.name, self.text.value, self.loaded.stamp)
            try:
                stamp = await parts.read(read.save, self.view.workspace.store, self.folder, edited)
            except read.Changed as error:
                self._conflict(error)
                return False
            self._take(read.Text(edited.name, edited.text, stamp))
            self._forget()
            parts.toast(self.view.say("recipes.saved", name=edited.name))
            if stamp != edited.stamp:
                await _acted(self.view, "recipe.save", recipe=edited.name, sha256=stamp)
            return True

    def _take(self, loaded: read.Text) -> None:
        """Go on from a text that stands in the file, or stood there when a draft was begun."""
        self.loaded = loaded
        self._mark()
        self.notes.clear()
        # By the editor's own window: a button of a note is gone by now, and the place it stood at.
        self.text.client.run_javascript(f"window.catenaDraft.saved = {_script(loaded.text)}")

    def _forget(self) -> None:
        self.text.client.run_javascript("window.catenaDraft.forget()")

    def _conflict(self, error: read.Changed) -> None:
        """Show that somebody else was quicker, and what differs; the person decides."""
        view = self.view
        lines = difflib.unified_diff(
            self.text.value.splitlines(), error.theirs.splitlines(), "mine", "theirs", lineterm=""
        )
        self.notes.clear()
        with (
            self.notes,
            parts.card(view.say("recipes.conflict_title"), view.say("recipes.conflict")).classes("c-conflict"),
        ):
            parts.code("\n".join(list(lines)[:MOST_DIFFERENCES]))
            with ui.element("div").classes("c-acts"):
                parts.button(view.say("recipes.keep_editing"), self.notes.clear)
                parts.button(view.say("recipes.take_theirs"), lambda: self._theirs(error))
                parts.button(view.say("recipes.keep_mine"), lambda: self._mine(error), tone="bad")

    def _theirs(self, error: read.Changed) -> None:
        self.text.value = error.theirs
        self._take(read.Text(self.loaded.name, error.theirs, error.stamp))
        self._forget()

    async def _mine(self, error: read.Changed) -> None:
        self.loaded = read.Text(self.loaded.name, error.theirs, error.stamp)
        self.notes.clear()
        with self.notes:  # the button that was pressed is gone, and what is told needs a place
            await self.save()

    def _draft(self, event: Any) -> None:
        """Offer what the browser had kept from another time."""
        view, held = self.view, event.args
        self.notes.clear()

        def restore() -> None:
            self.text.value = held["text"]
            self._take(read.Text(self.loaded.name, held["saved"], read.stamp_of(held["saved"])))

        def discard() -> None:
            self.notes.clear()
            self._forget()

        with self.notes, parts.card().classes("c-conflict"):
            parts.html(view.say("recipes.draft"))
            with ui.element("div").classes("c-acts"):
                parts.button(view.say("recipes.restore"), restore, main=True)
                parts.button(view.say("recipes.discard"), discard)

    async def start(self) -> None:
        """Save, and start a run of what is saved."""
        view = self.view
        view.need("push")
        await self.check()
        if self.checked.problems:
            raise UsageError(view.say("recipes.start_first"))
        fresh = sum(step.status == "run" for step in self.checked.steps)
        text = view.say("recipes.start_text", n=fresh, cached=len(self.checked.steps) - fresh)
        title = view.say("recipes.start_title", name=self.loaded.name)
        if not await parts.confirm(view, title, text, view.say("recipes.start"), tone="plain"):
            return
        if self.text.value != self.loaded.text and not await self.save():
            return
        view.need("push")
        begun = await parts.read(
            jobs.start, view.workspace.store, self.loaded.name, self.loaded.text, view.person.subject
        )
        await _acted(view, "recipe.start", recipe=begun.recipe, run=begun.id, sha256=self.loaded.stamp)
        ui.navigate.to(view.path("recipes/jobs", begun.id))


async def _acted(view: View, act: str, **fields: str) -> None:
    await parts.read(partial(acted, view.workspace, view.person.subject, act, **fields))


def _reason(view: View, told: str) -> str:
    """Return why a step runs, as the plan says it, in the person's language."""
    if told in REASONS:
        return view.say(f"recipes.why_{REASONS[told]}")
    kind, _, names = told.partition(" ")
    key = {"after": "recipes.why_after", "changed:": "recipes.why_changed"}.get(kind)
    return view.say(key, names=names) if key else told


def _script(text: str) -> str:
    """Return a text for a script: `<` cannot end it."""
    return json.dumps(text).replace("<", "\\u003c")
