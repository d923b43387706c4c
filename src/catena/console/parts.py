"""What pages are made of: headings, figure cards, tables, charts, empty states, dialogs, live updates.

Tables are one HTML element each, built from `cells`, and not hundreds of widgets: a page of 50 rows costs the browser
next to nothing, and only the rows that are looked at leave the server.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from inspect import isawaitable
from typing import Any, Literal
from weakref import WeakSet

from markupsafe import Markup, escape
from nicegui import Client, ui

from catena.console.cells import NOTHING, Tone
from catena.console.charts import Curve, lines
from catena.console.view import View
from catena.core.errors import CatenaError

logger = logging.getLogger(__name__)
ROWS = 50
"""Rows of a table that are shown at once."""
SEARCH_PAUSE_S = 0.25
_ASKED: WeakSet[Client] = WeakSet()
"""Windows with an open dialog."""


@dataclass(frozen=True)
class Column:
    """A column of a table: its heading, and whether it holds numbers or may be left out on a phone."""

    title: str
    align: Literal["left", "right"] = "left"
    wide: bool = False
    """Takes the room that is left."""
    phone: bool = True
    """Whether it is shown on a phone too."""


@dataclass(frozen=True)
class Slice:
    """The rows that were asked for."""

    rows: Sequence[Any]
    """Of a table its cells: what `cells` makes, or plain text."""
    total: int
    """How many there are in all."""


Load = Callable[[int, int, str], Slice]
"""`(offset, limit, search) -> Slice`; runs in a thread."""
Draw = Callable[[Sequence[Any]], Markup]
"""Rows to HTML."""


def html(content: Markup | str, tag: str = "div") -> ui.html:
    """Show safe HTML; plain text is escaped."""
    return ui.html(str(escape(content)), sanitize=False, tag=tag)


def heading(title: object, lead: object = "", *, over: object = "") -> ui.element:
    """Show a page's title, and give the place at its right for buttons: `with heading(...):`."""
    with ui.element("div").classes("c-heading"):
        above = Markup('<p class="c-over">{}</p>').format(over) if over else Markup()
        below = Markup('<p class="c-lead">{}</p>').format(lead) if lead else Markup()
        html(above + Markup("<h1>{}</h1>").format(title) + below)
        return ui.element("div").classes("c-acts")


def card(title: object = "", note: object = "") -> ui.element:
    """Return a card with a title to draw into: `with card("Losses"):`."""
    box = ui.element("section").classes("c-card")
    with box:
        if title:
            html(
                Markup("<h2>{}</h2>").format(title) + (Markup("<p>{}</p>").format(note) if note else Markup())
            ).classes("c-cardhead")
    return box


def columns(least: int = 340) -> ui.element:
    """Return a row of cards that wraps; each at least so many pixels wide."""
    return ui.element("div").classes("c-columns").style(f"--least:{least}px")


def figures(items: Sequence[tuple[object, object] | tuple[object, object, object]]) -> ui.html:
    """Show figure cards: (label, value) or (label, value, what stands below)."""
    return html(figures_html(items), tag="dl").classes("c-figures")


def figures_html(items: Sequence[tuple[object, object] | tuple[object, object, object]]) -> Markup:
    """Return what is inside `figures`, for one that changes."""
    one = Markup('<div class="c-figure"><dt>{}</dt><dd>{}</dd>{}</div>')
    below = Markup('<p class="c-sub">{}</p>')
    made = [one.format(item[0], item[1], below.format(item[2]) if len(item) > 2 and item[2] else "") for item in items]
    return Markup("").join(made)


def facts(items: Sequence[tuple[object, object]]) -> ui.html:
    """Show names and values, one pair a line; pairs without a value are left out."""
    one = Markup("<dt>{}</dt><dd>{}</dd>")
    shown = [one.format(name, value) for name, value in items if value not in ("", None, NOTHING)]
    return html(Markup("").join(shown), tag="dl").classes("c-facts")


def table_html(heads: Sequence[Column], rows: Sequence[Sequence[object]]) -> Markup:
    """Return a table as HTML; cells that are no `Markup` are escaped."""
    marks = [
        " ".join(
            name for name, wanted in (("r", head.align == "right"), ("w", head.wide), ("n", not head.phone)) if wanted
        )
        for head in heads
    ]
    top = Markup("").join(
        Markup('<th scope="col" class="{}">{}</th>').format(mark, head.title)
        for head, mark in zip(heads, marks, strict=True)
    )
    body = Markup("").join(
        Markup("<tr>{}</tr>").format(
            Markup("").join(
                Markup('<td class="{}">{}</td>').format(mark, NOTHING if cell in (None, "") else cell)
                for cell, mark in zip(row, marks, strict=True)
            )
        )
        for row in rows
    )
    return Markup(
        '<div class="c-scroll" tabindex="0"><table class="c-table"><thead><tr>{}</tr></thead><tbody>{}</tbody></table>'
        "</div>"
    ).format(top, body)


def table(heads: Sequence[Column], rows: Sequence[Sequence[object]]) -> ui.html:
    """Show a table of rows that are all here (a hundred at most; `paged` for more)."""
    return html(table_html(heads, rows))


class Turns:
    """Which question is the newest: what an older one brings late is not shown."""

    def __init__(self) -> None:
        self._asked = 0

    def ask(self) -> Callable[[], bool]:
        """Begin a question; what is returned tells whether it is still the newest."""
        self._asked += 1
        mine = self._asked
        return lambda: mine == self._asked


class Paged:
    """Rows that are asked for page by page, with a search where `search` is on; a table of them is made by `paged`."""

    def __init__(self, view: View, draw: Draw, load: Load, *, search: bool, size: int) -> None:
        self._view, self._draw, self._load, self._size = view, draw, load, size
        self._offset, self._words, self._turns = 0, "", Turns()
        with ui.element("div").classes("c-paged"):
            self.tools = ui.element("div").classes("c-tools")
            with self.tools:
                if search:
                    found = ui.input(placeholder=view.say("parts.search"), on_change=self._searched)
                    found.props(f"dense outlined clearable debounce={SEARCH_PAUSE_S * 1000:.0f}").classes("c-search")
                    found.props(f'aria-label="{view.say("parts.search")}"')
                ui.element("div").classes("c-grow")
                self._place = html("").classes("c-place").props('aria-live="polite"')
                self._back = icon_button("chevron_left", view.say("parts.previous"), self._previous)
                self._on = icon_button("chevron_right", view.say("parts.next"), self._next)
            self._body = html("")

    async def refresh(self) -> None:
        """Ask for the rows again."""
        newest = self._turns.ask()
        part = await read(self._load, self._offset, self._size, self._words)
        if newest() and not part.rows and part.total:  # fewer than there were, or the button was pressed too often
            self._offset = (part.total - 1) // self._size * self._size
            part = await read(self._load, self._offset, self._size, self._words)
        if not newest():
            return
        last = self._offset + len(part.rows)
        place = {"first": f"{self._offset + 1:,}", "last": f"{last:,}", "total": f"{part.total:,}"}
        self._place.content = str(escape(self._view.say("parts.rows_of", **place))) if part.rows else ""
        self._back.set_enabled(self._offset > 0)
        self._on.set_enabled(last < part.total)
        for button in (self._back, self._on):
            button.set_visibility(part.total > self._size)
        nothing = Markup('<p class="c-empty">{}</p>').format(self._view.say("parts.none_found"))
        self._body.content = str(self._draw(part.rows) if part.rows else nothing)

    async def restart(self) -> None:
        """Ask again, from the first row on: what is asked for has changed."""
        self._offset = 0
        await self.refresh()

    async def _searched(self, event: Any) -> None:
        self._words = event.value or ""
        await self.restart()

    async def _previous(self) -> None:
        self._offset = max(0, self._offset - self._size)
        await self.refresh()

    async def _next(self) -> None:
        self._offset += self._size
        await self.refresh()


async def paged(view: View, heads: Sequence[Column], load: Load, *, search: bool = False, size: int = ROWS) -> Paged:
    """Show a table of any length. `load(offset, limit, search)` runs in a thread and gives a `Slice`."""
    made = Paged(view, partial(table_html, heads), load, search=search, size=size)
    await made.refresh()
    return made


async def read(work: Callable[..., Any], *arguments: Any) -> Any:
    """Run what waits for a disk or a database in a thread: the event loop draws for everybody."""
    return await asyncio.to_thread(work, *arguments)


def chart(view: View, curves: Sequence[Curve], **options: Any) -> ui.echart:
    """Show curves over numbers; each thinned to what a screen shows. `options` are those of `charts.lines`."""
    return ui.echart(lines(curves, dark=is_dark(view), **options)).classes("c-chart")


def redraw(view: View, shown: ui.echart, curves: Sequence[Curve], **options: Any) -> None:
    """Put new points into a chart that is there."""
    shown.options.update(lines(curves, dark=is_dark(view), **options))
    shown.update()


def is_dark(view: View) -> bool:
    """Tell whether a page is drawn for the dark; where the system decides, colours that do for both are taken."""
    return bool(view.dark)


def empty(text: object, command: str = "", hint: object = "") -> ui.html:
    """Say that there is nothing yet, and which command brings something."""
    line = Markup('<code class="c-command">{}</code>').format(command) if command else Markup()
    more = Markup('<p class="c-sub">{}</p>').format(hint) if hint else Markup()
    return html(Markup("<p>{}</p>{}{}").format(text, line, more)).classes("c-empty")


def trouble(message: object, hint: object, *, title: bool = False) -> ui.html:
    """Say what went wrong, and what to do; `title` where it stands in the place of a whole page."""
    tag = Markup("h1" if title else "strong")
    more = Markup("<p>{}</p>").format(hint) if hint else Markup()
    icon = Markup('<i class="material-icons" aria-hidden="true">error_outline</i>')
    return (
        html(Markup("{}<div><{}>{}</{}>{}</div>").format(icon, tag, message, tag, more))
        .classes("c-trouble")
        .props('role="alert"')
    )


def toast(message: str, hint: str = "", tone: Tone = "good") -> None:
    """Show a short message at the edge of the page; bad news stays until it is closed."""
    kind: Any = {"good": "positive", "bad": "negative", "warn": "warning"}.get(tone, "info")
    bad = tone == "bad"
    ui.notify(
        f"{message} {hint}".strip(),
        type=kind,
        position="bottom",
        timeout=0 if bad else 4000,
        close_button="✕" if bad else False,
        multi_line=True,
    )


def code(text: str) -> ui.html:
    """Show a text letter by letter: a config, a log, a command."""
    return html(Markup('<pre class="c-pre" tabindex="0">{}</pre>').format(text))


def prose(text: str) -> ui.html:
    """Show a text of people or models as they wrote it; nothing in it is taken for HTML."""
    return html(Markup('<div class="c-prose" dir="auto">{}</div>').format(text))


def button(
    title: str, act: Callable[..., Any], *, icon: str = "", main: bool = False, tone: Tone = "plain"
) -> ui.button:
    """Show a button. `act` may be asynchronous; what it raises is shown to the person."""
    made = ui.button(title, on_click=_on_page(act), icon=icon or None, color=None)
    return made.props("no-caps unelevated").classes(f"c-button {'c-mainbutton' if main else ''} c-{tone}button")


def icon_button(icon: str, title: str, act: Callable[..., Any]) -> ui.button:
    """Show a button that is only a picture; `title` is what it says to who hovers or hears."""
    made = ui.button(icon=icon, on_click=_on_page(act), color=None).props(
        f'flat dense round aria-label="{escape(title)}"'
    )
    return made.classes("c-iconbutton").tooltip(title)


def _on_page(act: Callable[..., Any]) -> Callable[[], Awaitable[None]]:
    """Return an act whose dialogs and messages belong to the page: its button may be gone before it is through."""
    client = ui.context.client

    async def pressed() -> None:
        with client:
            told = act()
            if isawaitable(told):
                await told

    return pressed


def tabs(view: View, items: Sequence[tuple[str, object]], lit: str, *path: str, **query: str) -> ui.html:
    """Show tabs as links (`?tab=KEY` of a path): each is a page of its own, that loads only what it shows.

    The space between them is for who reads them without styles.
    """
    one = Markup('<a href="{}"{}>{}</a>')
    here = Markup(' aria-current="page"')
    made = [
        one.format(view.href(*path, **{**query, "tab": key}), here if key == lit else "", title) for key, title in items
    ]
    return html(Markup(" ").join(made), tag="nav").classes("c-tabs")


def link_button(view: View, title: object, *path: str, **query: str) -> Markup:
    """Return a link that looks like a button."""
    return Markup('<a class="c-button c-linkbutton" href="{}">{}</a>').format(view.href(*path, **query), title)


async def confirm(view: View, title: str, text: str, act: str, *, tone: Tone = "warn") -> bool:
    """Ask before something is done that others feel; tells whether the person said yes."""
    with ui.dialog() as dialog, ui.element("div").classes("c-dialog"):
        html(Markup("<h2>{}</h2><p>{}</p>").format(title, text))
        with ui.element("div").classes("c-acts"):
            button(view.say("parts.cancel"), lambda: dialog.submit(False))
            button(act, lambda: dialog.submit(True), main=True, tone=tone)
    return bool(await answer_to(dialog))


async def answer_to(dialog: ui.dialog) -> Any:
    """Open a dialog, and return what it was submitted with; None where it was closed, or the person went away.

    A window has one at a time: a second press that came before the dialog was drawn opens no second one behind it.
    """
    client = dialog.client
    if client in _ASKED:
        dialog.delete()
        return None
    _ASKED.add(client)
    try:
        return await dialog
    finally:
        _ASKED.discard(client)
        if not dialog.is_deleted:  # it goes with the page of who went away
            dialog.delete()


def live(view: View, seconds: float, refresh: Callable[[], Awaitable[None]], action: Any) -> ui.timer:
    """Call `refresh` every so often while the page is open and its person may still see it; errors are told once."""
    busy = False
    failed = ""

    async def again() -> None:
        nonlocal busy, failed
        if busy:
            return  # the last one is not through: a slow disk must not pile them up
        busy = True
        try:
            view.need(action)
            await refresh()
            failed = ""
        except CatenaError as error:
            if failed != error.message:
                failed = error.message
                toast(error.message, error.hint, tone="bad")
        finally:
            busy = False

    return ui.timer(seconds, again, immediate=False)


def quietly(work: Awaitable[Any]) -> asyncio.Future[Any]:
    """Run something beside the page; what it raises goes to the log."""

    async def guarded() -> None:
        try:
            await work
        except Exception:
            logger.exception("work beside a page failed")

    return asyncio.ensure_future(guarded())
