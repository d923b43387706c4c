"""The search in the audit: fields, entries newest first, each opens where one looks; pages come from the server."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from markupsafe import Markup
from nicegui import ui

from catena.console import cells, parts
from catena.console.parts import Column
from catena.console.read.audit import KINDS, Entry, Found, search
from catena.console.view import View
from catena.core.errors import UsageError
from catena.govern.audit.reading import Query

TEXTS = ("words", "subject", "model", "id")
TIMES = ("since", "until")
TONES: dict[str, cells.Tone] = {"act": "busy", "gap": "bad", "damaged": "bad", "erased": "warn"}


class Search:
    """The form, and the page of entries below it."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._fields: dict[str, Any] = {}
        self._query = Query()
        self._found = Found((), "", 0, None)
        self._turns = parts.Turns()

    async def draw(self) -> None:
        """Draw the form and the newest entries; a query in the address is taken."""
        view = self._view
        with ui.element("div").classes("c-form"):
            for name in TEXTS:
                self._text(name)
            kinds = {"": view.say("audit.any")} | {kind: view.say(f"audit.kind_{kind}") for kind in KINDS}
            asked = view.query.get("kind", "")
            self._fields["kind"] = (
                ui.select(kinds, value=asked if asked in kinds else "", label=view.say("audit.kind"))
                .props("dense outlined options-dense")
                .on_value_change(self._begin)
            )
            for name in TIMES:
                self._text(name)
        with ui.element("div").classes("c-tools"):
            parts.button(view.say("audit.go"), self._begin, main=True, icon="search")
            parts.button(view.say("audit.clear"), self._clear)
            ui.element("div").classes("c-grow")
            self._place = parts.html("").classes("c-place").props('aria-live="polite"')
            self._newest = parts.button(view.say("audit.newest"), self._begin)
            self._older = parts.button(view.say("audit.older"), self._further)
        self._list = parts.html("")
        await self._begin()

    def _text(self, name: str) -> None:
        label = self._view.say(f"audit.{name}")
        field = ui.input(label=label, value=self._view.query.get(name, ""))
        field.props("dense outlined clearable").on("keydown.enter", self._begin)
        self._fields[name] = field

    async def _clear(self) -> None:
        kind = self._fields["kind"].value
        for field in self._fields.values():
            field.set_value("")
        if not kind:  # a change of the kind searches by itself
            await self._begin()

    def _asked(self) -> Query:
        told = {name: str(field.value or "").strip() for name, field in self._fields.items()}
        since, until = (self._time(told[name]) for name in TIMES)
        return Query(told["subject"], told["words"], told["kind"], told["model"], told["id"], since, until)

    def _time(self, text: str) -> datetime | None:
        if not text:
            return None
        try:
            found = datetime.fromisoformat(text)
        except ValueError as error:
            raise UsageError(self._view.say("audit.wrong_time", text=text)) from error
        return found if found.tzinfo else found.replace(tzinfo=UTC)

    async def _begin(self) -> None:
        await self._load(self._asked(), "")

    async def _further(self) -> None:
        await self._load(self._query, self._found.next)

    async def _load(self, query: Query, start: str) -> None:
        view = self._view
        view.need("audit")
        by = view.person.subject
        newest = self._turns.ask()
        self._older.set_enabled(False)  # until it is known where this search goes on
        found = await parts.read(search, view.workspace, query, by, start)
        if not newest():
            return
        self._query, self._found = query, found
        self._newest.set_enabled(bool(start))
        self._older.set_enabled(bool(found.next))
        self._older.set_text(view.say("audit.older" if found.entries or not found.next else "audit.further"))
        self._place.content = str(self._where(found))
        self._list.content = str(_table(view, found) if found.entries else self._nothing(found))

    def _where(self, found: Found) -> Markup:
        if not found.entries:
            return Markup()
        first, last = (f"{found.entries[at].seq:,}" for at in (-1, 0))
        return Markup("{}").format(self._view.say("audit.shown", first=first, last=last))

    def _nothing(self, found: Found) -> Markup:
        if found.next and found.until is not None:
            until = found.until.strftime("%Y-%m-%d %H:%M UTC")
            told = self._view.say("audit.nothing_until", until=until, looked=f"{found.looked:,}")
        else:
            told = self._view.say("audit.nothing")
        return Markup('<p class="c-empty">{}</p>').format(told)


def _table(view: View, found: Found) -> Markup:
    say = view.say
    heads = [
        Column(say("audit.number"), "right", phone=False),
        Column(say("audit.time")),
        Column(say("audit.kind")),
        Column(say("audit.who"), phone=False),
        Column(say("audit.what"), wide=True),
    ]
    return parts.table_html(heads, [_row(view, one) for one in found.entries])


def _row(view: View, one: Entry) -> list[object]:
    kind = cells.badge(view.say(f"audit.kind_{one.kind}") if one.kind in KINDS else one.kind, _tone(one.kind))
    what: Markup = Markup('<span class="c-sub">{}</span>').format(view.say("audit.unreadable"))
    if one.kind not in ("erased", "damaged"):
        what = Markup('<details class="c-entry"><summary>{}</summary><pre class="c-pre">{}</pre></details>').format(
            one.what, cells.text(one.body, 20_000)
        )
    return [f"{one.seq:,}", cells.when(view.language, one.time), kind, cells.text(one.who, 80), what]


def _tone(kind: str) -> cells.Tone:
    return TONES.get(kind, "plain")
