"""Labelling: one sample at a time, a key for each label, and a commit that makes a new version of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

from markupsafe import Markup
from nicegui import ui

from catena.console import cells, parts
from catena.console.read import datasets, labels as read
from catena.console.read.audit import acted
from catena.console.read.datasets import Opened
from catena.console.view import View
from catena.core.errors import UsageError
from catena.hub.corrections import Corrected

KEYS = "123456789"


async def labelling(view: View, found: Opened) -> None:
    """Draw the tab."""
    if not found.artifact.rows:
        parts.empty(view.say("labels.none"))
        return
    await Desk(view, found).draw()


class Desk:
    """One person labelling one dataset in one window."""

    def __init__(self, view: View, found: Opened) -> None:
        self.view, self.found = view, found
        self.store, self.name, self.person = view.workspace.store, found.name, view.person.subject
        self.choices: list[str] = []
        self.mine: dict[str, read.Label] = {}
        self.at, self.total = 0, found.artifact.rows
        self.row: Mapping[str, Any] = {}
        self.turns, self.busy = parts.Turns(), False

    async def draw(self) -> None:
        """Draw the desk."""
        view = self.view
        self.choices = await parts.read(read.choices, view.workspace, self.found.ref)
        self.mine = await parts.read(read.kept, self.store, self.name, self.person)
        newest = self.found.others[0] if self.found.others else self.found.ref
        if newest != self.found.ref:
            parts.html(Markup('<p class="c-note">{}</p>').format(view.say("labels.old", newest=newest)))
            return
        with parts.columns(380):
            with parts.card():
                with ui.element("div").classes("c-tools"):
                    self.place = parts.html("").classes("c-place").props('aria-live="polite"')
                    ui.element("div").classes("c-grow")
                    parts.icon_button("chevron_left", view.say("labels.before"), lambda: self.go(self.at - 1))
                    parts.icon_button("chevron_right", view.say("labels.after"), lambda: self.go(self.at + 1))
                self.text = parts.html("")
            with parts.card(view.say("labels.label"), view.say("labels.lead")):
                self.said = parts.html("")
                self.buttons = ui.element("div").classes("c-acts")
                with ui.element("div").classes("c-tools"):
                    other = view.say("labels.other")
                    self.other = ui.input(placeholder=other).props(f'dense outlined maxlength=200 aria-label="{other}"')
                    self.other.on("keydown.enter", lambda: self.put(self.other.value))
                    parts.button(view.say("labels.put"), lambda: self.put(self.other.value))
                    parts.button(view.say("labels.back"), lambda: self.put(None))
                ui.separator()
                self.count = parts.html("")
                if view.may("push"):
                    parts.button(view.say("labels.commit"), self.commit, icon="commit", main=True)
                self.conflicts = parts.html("")
        ui.keyboard(self._key, repeating=False)
        await self.go(0)

    async def go(self, at: int) -> None:
        """Show another sample."""
        self.at = min(max(0, at), self.total - 1)
        newest = self.turns.ask()
        hits = await parts.read(datasets.rows, self.view.workspace, self.found.ref, "samples", (self.at, 1))
        if not newest():
            return
        self.row = hits.rows[0] if hits.rows else {}
        self._show()

    def _show(self) -> None:
        view = self.view
        place = {"first": f"{self.at + 1:,}", "last": f"{self.at + 1:,}", "total": f"{self.total:,}"}
        self.place.content = view.say("labels.place", **place)
        shown = str(self.row.get("input")) if self.row.get("input") is not None else datasets.text_of(self.row)
        self.text.content = str(
            Markup('<div class="c-prose c-labeltext" dir="auto">{}</div>').format(cells.text(shown, 8000))
        )
        stands, mine = read.label_of(self.row), self.mine.get(str(self.row.get("_id")))
        said = [cells.badge(view.say("labels.stands", label=stands))] if stands else []
        said += [cells.badge(view.say("labels.mine", label=mine.value), "good")] if mine else []
        self.said.content = str(cells.join(*said) or cells.badge(view.say("labels.unlabelled"), "warn"))
        self.count.content = str(view.say("labels.count", n=f"{len(self.mine):,}"))
        self.buttons.clear()
        with self.buttons:
            for number, choice in enumerate(self.choices):
                key = f"{KEYS[number]} · " if number < len(KEYS) else ""
                chosen = mine is not None and mine.value == choice
                parts.button(f"{key}{choice}", lambda choice=choice: self.put(choice), main=chosen)

    async def put(self, value: str | None) -> None:
        """Write down a label for the sample that is shown, and go on to the next.

        What is pressed before the next one is shown is dropped: nobody has seen yet what it would be for.
        """
        await self._alone(partial(self._put, value))

    async def _put(self, value: str | None) -> None:
        self.view.need("feedback")
        id = str(self.row["_id"])
        wanted = (value or "").strip()
        if value is not None and not wanted:
            raise UsageError(self.view.say("labels.empty"))
        label = None if value is None else read.Label(id, read.label_of(self.row), wanted[: read.MOST_LABEL])
        await parts.read(read.keep, self.store, self.name, self.person, label, id)
        if label is None:
            self.mine.pop(id, None)
            self._show()
            return
        self.mine[id] = label
        if wanted not in self.choices and len(self.choices) < read.MOST_CHOICES:
            self.choices.append(wanted)
        self.other.value = ""
        await self.go(self.at + 1)

    async def _key(self, event: Any) -> None:
        """Take a digit as the label with that number, arrows as the way; not while somebody types."""
        if not event.action.keydown or event.modifiers.ctrl or event.modifiers.alt or event.modifiers.meta:
            return
        name = str(event.key)
        if name in KEYS and KEYS.index(name) < len(self.choices):
            await self.put(self.choices[KEYS.index(name)])
        elif name in ("ArrowLeft", "ArrowRight"):
            await self.go(self.at + (1 if name == "ArrowRight" else -1))

    async def commit(self) -> None:
        """Make a new version of all that was said."""
        await self._alone(self._commit)

    async def _alone(self, act: Callable[[], Awaitable[None]]) -> None:
        """Do something, and nothing where the act before it is not through."""
        if self.busy:
            return
        self.busy = True
        try:
            await act()
        finally:
            self.busy = False

    async def _commit(self) -> None:
        view = self.view
        view.need("push")
        if not self.mine:
            raise UsageError(view.say("labels.nothing"))
        message = f"{len(self.mine)} labels"
        done: Corrected = await parts.read(read.commit, view.workspace, self.name, self.person, message)
        if done.commit is not None:
            told = {"dataset": self.name, "commit": done.commit, "changed": done.changed}
            await parts.read(partial(acted, view.workspace, self.person, "labels.commit", **told))
        self.mine = await parts.read(read.kept, self.store, self.name, self.person)
        if done.conflicts:
            parts.toast(view.say("labels.conflicts", n=len(done.conflicts)), tone="warn")
            self._tell(done)
            self._show()
            return
        parts.toast(view.say("labels.done", n=done.changed))
        ui.navigate.to(view.path("datasets", self.name, tab="labels"))

    def _tell(self, done: Corrected) -> None:
        view = self.view
        heads = [
            parts.Column(view.say("datasets.row")),
            parts.Column(view.say("labels.yours")),
            parts.Column(view.say("labels.theirs"), wide=True),
        ]
        rows = [[cells.code(id, 26), mine, stands] for id, mine, stands in read.conflicts_of(done)[:50]]
        told = Markup("<p>{}</p>").format(view.say("labels.conflict_lead"))
        self.conflicts.content = str(told + parts.table_html(heads, rows))
