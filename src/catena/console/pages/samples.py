"""Samples of evaluations: a list that is asked for page by page, filters, and how one sample and a pair look."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup
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


def listed(view: View, load: parts.Load, size: int) -> parts.Paged:
    """Show samples below one another, with a search, page by page; filters go into its `tools`."""
    return parts.Paged(view, _below_one_another, load, search=True, size=size)


def _below_one_another(rows: Sequence[Markup]) -> Markup:
    return Markup('<div class="c-samples">{}</div>').format(Markup("").join(rows))


def chips(view: View, options: Mapping[str, str], chosen: Filter, shown: parts.Paged) -> None:
    """Show a row of choices, of which one is lit."""
    buttons: dict[str, ui.element] = {}

    def light() -> None:
        for key, button in buttons.items():
            button.props('aria-current="true"') if key == chosen.kind else button.props(remove="aria-current")

    def press(key: str) -> Callable[[], Any]:
        async def pressed() -> None:
            chosen.kind = key
            light()
            await shown.restart()

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
