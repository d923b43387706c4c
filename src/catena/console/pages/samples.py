"""Samples of evaluations: a list that is asked for page by page, filters, and how one sample and a pair look."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape
from nicegui import ui

from catena.console import cells, parts
from catena.console.read.samples import RIGHT, Line, Pair
from catena.console.view import View

MOST_TEXT = 6000
SHOWN = ("question", "answer", "extracted", "reference")
"""Fields with a place of their own; the numbers of the rest stand in the head."""
HIDDEN = ("split", "id", "page", "score", "finish_reason", "group")


@dataclass
class Filter:
    """What is shown."""

    kind: str = ""
    split: str = ""


class Listed:
    """Samples below one another, with a search, page by page."""

    def __init__(self, view: View, load: Callable[[int, int, str], tuple[Sequence[Markup], int]], size: int) -> None:
        self._view, self._load, self._size = view, load, size
        self._offset, self._words, self._asked = 0, "", 0
        with ui.element("div").classes("c-tools"):
            self.tools = ui.element("div").classes("c-filters")
            label = view.say("parts.search")
            box = ui.input(placeholder=label, on_change=self._searched).props("dense outlined clearable debounce=300")
            box.props(f'aria-label="{label}"').classes("c-choice")
            ui.element("div").classes("c-grow")
            self._place = parts.html("").classes("c-place").props('aria-live="polite"')
            self._back = parts.icon_button("chevron_left", view.say("parts.previous"), self._previous)
            self._on = parts.icon_button("chevron_right", view.say("parts.next"), self._next)
        self._body = parts.html("").classes("c-samples")

    async def refresh(self) -> None:
        """Ask again for what is shown."""
        self._asked += 1
        mine = self._asked
        rows, total = await parts.read(self._load, self._offset, self._size, self._words)
        if mine != self._asked:
            return  # a later question is on its way
        last = self._offset + len(rows)
        place = {"first": f"{self._offset + 1:,}", "last": f"{last:,}", "total": f"{total:,}"}
        self._place.content = str(escape(self._view.say("parts.rows_of", **place))) if rows else ""
        self._back.set_enabled(self._offset > 0)
        self._on.set_enabled(last < total)
        nothing = Markup('<p class="c-empty">{}</p>').format(self._view.say("parts.none_found"))
        self._body.content = str(Markup("").join(rows) or nothing)

    async def restart(self) -> None:
        """Ask from the beginning: what is wanted has changed."""
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


def chips(view: View, options: Mapping[str, str], chosen: Filter, listed: Listed) -> None:
    """Show a row of choices, of which one is lit."""
    buttons: dict[str, ui.element] = {}

    def light() -> None:
        for key, button in buttons.items():
            button.props('aria-current="true"') if key == chosen.kind else button.props(remove="aria-current")

    def press(key: str) -> Callable[[], Any]:
        async def pressed() -> None:
            chosen.kind = key
            light()
            await listed.restart()

        return pressed

    if chosen.kind not in options:
        chosen.kind = next(iter(options))
    with ui.element("div").classes("c-chips").props('role="group"'):
        for key, text in options.items():
            buttons[key] = ui.element("button").classes("c-chip").props('type="button"').on("click", press(key))
            with buttons[key]:
                parts.html(text, tag="span")
    light()


def sample_html(view: View, line: Line) -> Markup:
    """Return one sample: what was asked, answered, and would have been right."""
    one = Markup("<dt>{}</dt><dd dir='auto'>{}</dd>")
    told = [
        one.format(view.say(f"evaluation.{name}"), cells.text(line[name], MOST_TEXT))
        for name in SHOWN
        if line.get(name) not in (None, "") and not (name == "extracted" and line[name] == line.get("answer"))
    ]
    rest = {key: value for key, value in line.items() if key not in (*SHOWN, *HIDDEN) and value not in (None, "", [])}
    told += [one.format(key, cells.text(_told(value), MOST_TEXT)) for key, value in rest.items()]
    return Markup('<article class="c-sample"><header>{}</header><dl>{}</dl></article>').format(
        _head(view, line), Markup("").join(told)
    )


def _told(value: Any) -> str:
    return cells.number(value) if isinstance(value, float) else str(value)


def _head(view: View, line: Line) -> Markup:
    parts_: list[object] = []
    score = line.get("score")
    if isinstance(score, int | float):
        parts_.append(mark(view, float(score)))
    parts_ += [line.get("split") or "", line.get("group") or "", cells.code(line.get("id") or "", 60)]
    if line.get("page"):
        parts_.append(cells.text(line["page"], 120))
    if line.get("finish_reason") == "length":
        parts_.append(cells.badge(view.say("evaluation.cut"), "warn"))
    return cells.join(*parts_)


def mark(view: View, score: float) -> Markup:
    """Return whether an answer was right; between right and wrong the score itself."""
    if score >= RIGHT:
        return cells.badge(view.say("evaluation.right"), "good")
    if score <= 0:
        return cells.badge(view.say("evaluation.wrong"), "bad")
    return cells.badge(cells.number(score, 3), "warn")


def pair_html(view: View, pair: Pair, names: tuple[str, str]) -> Markup:
    """Return a question and what two models answered to it, side by side."""
    one = Markup("<dt>{}</dt><dd dir='auto'>{}</dd>")
    line = pair.first
    told = [
        one.format(view.say(f"evaluation.{name}"), cells.text(line[name], MOST_TEXT))
        for name in ("question", "reference")
        if line.get(name) not in (None, "")
    ]
    side = Markup('<div class="c-side"><header><b>{}</b>{}</header><div dir="auto">{}</div></div>')
    sides = [
        side.format(name, _mark(view, it), _answer(it)) for name, it in zip(names, (line, pair.second), strict=True)
    ]
    head = cells.join(line.get("split") or "", cells.code(line.get("id") or "", 60))
    return Markup(
        '<article class="c-sample"><header>{}</header><dl>{}</dl><div class="c-sides">{}</div></article>'
    ).format(head, Markup("").join(told), Markup("").join(sides))


def _mark(view: View, line: Line) -> Markup:
    score = line.get("score")
    return mark(view, float(score)) if isinstance(score, int | float) else Markup("")


def _answer(line: Line) -> Markup:
    if line.get("answer") not in (None, ""):
        return cells.text(line["answer"], MOST_TEXT)
    rest = {key: value for key, value in line.items() if key not in (*SHOWN, *HIDDEN) and value not in (None, "")}
    return cells.text("\n".join(f"{key}: {_told(value)}" for key, value in rest.items()), MOST_TEXT)
