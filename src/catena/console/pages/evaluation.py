"""Evaluation: the leaderboard, the list of evaluations, and one of them with every sample."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import orjson
from markupsafe import Markup
from nicegui import ui

from catena.console import cells, parts
from catena.console.page import page
from catena.console.pages.samples import Filter, chips, listed, sample_html
from catena.console.parts import Column, Slice
from catena.console.read.books import books
from catena.console.read.evaluation import Board, EvaluationBook, EvaluationRow
from catena.console.read.samples import FILES
from catena.console.view import View
from catena.core.types import Report, Score

BOARDS = 12
"""Tables of the leaderboard that are shown at once."""
PLACES = 20
SAMPLES = 20
TABS = ("boards", "reports")


@page(name="evaluation", path="/evaluation", icon="leaderboard", action="data")
async def evaluation(view: View) -> None:
    """Show the leaderboard, or all evaluations."""
    book = books(view.workspace).evaluation
    found = await parts.read(book.reports)
    parts.heading(view.say("evaluation.title"), view.say("evaluation.lead"))
    if not found:
        with parts.card():
            parts.empty(view.say("evaluation.none"), "catena evaluate MODEL --tasks basics")
        return
    tab = view.query.get("tab", TABS[0])
    tab = tab if tab in TABS else TABS[0]
    parts.tabs(view, [(name, view.say(f"evaluation.tab_{name}")) for name in TABS], tab, "evaluation")
    if tab == "boards":
        await _boards(view, await parts.read(book.boards))
    else:
        await _reports(view, found)


async def _boards(view: View, boards: Sequence[Board]) -> None:
    words = {"search": view.query.get("task", "")}

    def draw() -> None:
        place.clear()
        wanted = words["search"].lower().split()
        chosen = [board for board in boards if all(word in f"{board.task} {board.score}".lower() for word in wanted)]
        with place:
            for board in chosen[:BOARDS]:
                _board(
                    view, board, several=sum((one.task, one.score) == (board.task, board.score) for one in boards) > 1
                )
        more = len(chosen) - BOARDS
        rest.content = view.say("evaluation.more_boards", n=more) if more > 0 else ""
        if not chosen:
            rest.content = view.say("parts.none_found")

    def searched(event: Any) -> None:
        words["search"] = event.value or ""
        draw()

    if len(boards) > 4:
        label = view.say("evaluation.find_board")
        box = ui.input(placeholder=label, value=words["search"], on_change=searched)
        box.props(f'dense outlined clearable debounce=200 aria-label="{label}"').classes("c-search")
    place = parts.columns(420)
    rest = parts.html("", tag="p").classes("c-sub")
    draw()


def _board(view: View, board: Board, *, several: bool) -> None:
    places = board.places[:PLACES]
    low, high = _range(place.score for place in places)
    lower = places[0].score.better == "lower"
    notes = [view.say("evaluation.lower")] if lower else []
    notes += [view.say("evaluation.way", way=board.way)] if several else []
    heads = [
        Column("#", "right"),
        Column(view.say("evaluation.model"), wide=True),
        Column(view.say("evaluation.value"), "right"),
        Column(view.say("evaluation.interval"), phone=False),
        Column(view.say("evaluation.n"), "right", phone=False),
    ]
    rows = [
        [
            Markup('<span class="c-rank">{}</span>').format(rank),
            cells.link(view.href("evaluation", place.report), place.model),
            value_of(place.score),
            _interval(place.score, low, high),
            f"{place.score.n:,}" if place.score.n else "",
        ]
        for rank, place in enumerate(places, 1)
    ]
    with parts.card(f"{board.task} · {board.score}", " · ".join(notes)):
        parts.table(heads, rows)


def _range(scores: Any) -> tuple[float, float]:
    """Return the ends of an axis that all intervals of a table fit on; shares have 0 to 1."""
    shown = list(scores)
    lows = [score.value if score.low is None else score.low for score in shown]
    highs = [score.value if score.high is None else score.high for score in shown]
    if min(lows) >= 0 and max(highs) <= 1 and not any(score.unit for score in shown):
        return 0.0, 1.0
    pad = (max(highs) - min(lows)) * 0.08 or 1.0
    return min(lows) - pad, max(highs) + pad


def _interval(score: Score, low: float, high: float) -> Markup:
    """Return a score as a dot with its interval, on an axis from `low` to `high`."""

    def at(value: float) -> float:
        return 100 * (value - low) / (high - low)

    first = score.value if score.low is None else score.low
    last = score.value if score.high is None else score.high
    title = f"{cells.number(first)} – {cells.number(last)}"
    return Markup(
        '<span class="c-interval" title="{}"><i style="left:{:.1f}%;width:{:.1f}%"></i>'
        '<b style="left:{:.1f}%"></b></span>'
    ).format(title, at(first), max(at(last) - at(first), 0.5), at(score.value))


def value_of(score: Score) -> str:
    """Return a score as a person reads it."""
    return f"{cells.number(score.value)} {score.unit}".strip()


async def _reports(view: View, found: Sequence[EvaluationRow]) -> None:
    heads = [
        Column(view.say("evaluation.model"), wide=True),
        Column(view.say("evaluation.suite")),
        Column(view.say("evaluation.score"), phone=False),
        Column(view.say("evaluation.made"), "right"),
    ]

    def load(offset: int, limit: int, search: str) -> Slice:
        words = search.lower().split()
        kept = [row for row in found if all(word in f"{row.model} {row.suite} {row.ref}".lower() for word in words)]
        return Slice([_row(view, row) for row in kept[offset : offset + limit]], len(kept))

    with parts.card():
        await parts.paged(view, heads, load, search=len(found) > 8)


def _row(view: View, row: EvaluationRow) -> list[object]:
    shown = [f"{name} {value_of(score)}" for name, score in list(row.scores.items())[:3]]
    link = cells.link(view.href("evaluation", row.digest), row.model)
    return [cells.stack(link, row.ref), row.suite, cells.stack("", *shown), cells.when(view.language, row.created)]


@page(name="evaluation", path="/evaluation/{ref:path}", icon="leaderboard", action="data", menu=False)
async def report(view: View) -> None:
    """Show one evaluation."""
    book, ref = books(view.workspace).evaluation, view.parameters["ref"]
    found: Report = await parts.read(book.report, ref)
    name = await parts.read(book.name_of, found.subject)
    over = cells.link(view.href("evaluation"), view.say("evaluation.title"))
    lead = cells.join(found.suite, cells.digest(found.digest), cells.when(view.language, found.created))
    with parts.heading(cells.link(view.href("models", name), name), lead, over=over):
        _compare_with(view, found, await parts.read(book.partners, found))
    main = list(found.scores.items())[:4]
    parts.figures([(breakable(key), value_of(score), _ends(score)) for key, score in main])
    kept = any(file.path in FILES for file in found.files)
    tabs = ["samples", "scores", "details"] if kept else ["scores", "details"]
    tab = view.query.get("tab", tabs[0])
    tab = tab if tab in tabs else tabs[0]
    parts.tabs(view, [(key, view.say(f"evaluation.tab_{key}")) for key in tabs], tab, "evaluation", ref)
    if tab == "samples":
        await _samples(view, book, found)
    elif tab == "scores":
        _scores(view, found)
    else:
        with parts.card(view.say("evaluation.tab_details")):
            parts.code(orjson.dumps(dict(found.details), option=orjson.OPT_INDENT_2, default=str).decode())


def _ends(score: Score) -> str:
    if score.low is None or score.high is None:
        return ""
    return f"{cells.number(score.low)} – {cells.number(score.high)}"


def _compare_with(view: View, found: Report, partners: Sequence[EvaluationRow]) -> None:
    if not partners:
        return
    options = {row.digest: row.model for row in partners}

    def go(event: Any) -> None:
        if event.value:
            ui.navigate.to(view.path("evaluation", "compare", first=found.digest, second=event.value))

    select = ui.select(options, label=view.say("evaluation.compare_with"), on_change=go)
    select.props("dense outlined options-dense").classes("c-comparewith")


def _scores(view: View, found: Report) -> None:
    heads = [
        Column(view.say("evaluation.score"), wide=True),
        Column(view.say("evaluation.value"), "right"),
        Column(view.say("evaluation.interval"), "right"),
        Column(view.say("evaluation.n"), "right", phone=False),
    ]
    with parts.card(view.say("evaluation.tab_scores")):
        parts.table(
            heads,
            [
                [breakable(name), value_of(score), _ends(score), f"{score.n:,}" if score.n else ""]
                for name, score in found.scores.items()
            ],
        )


async def _samples(view: View, book: EvaluationBook, found: Report) -> None:
    lines = await parts.read(book.samples.lines, found)
    counts = lines.counts()
    total, right = sum(one for one, _ in counts.values()), sum(one for _, one in counts.values())
    judged = bool((lines.scores == lines.scores).any())
    chosen = Filter(kind=view.query.get("show", ""), split="")

    def load(offset: int, limit: int, search: str) -> parts.Slice:
        kind: Any = chosen.kind if chosen.kind in ("right", "wrong") else ""
        part = book.samples.page(found, split=chosen.split, outcome=kind, search=search, offset=offset, limit=limit)
        return parts.Slice([sample_html(view, line) for line in part.rows], part.total)

    with parts.card():
        shown = listed(view, load, SAMPLES)
        with shown.tools, ui.element("div").classes("c-filters"):
            if judged:
                kinds = {"": total, "right": right, "wrong": total - right}
                words = {key: view.say(f"evaluation.{key or 'all'}") for key in kinds}
                chips(view, {key: f"{words[key]} {count:,}" for key, count in kinds.items()}, chosen, shown)
            if len(counts) > 1:
                _splits(view, list(counts), chosen, shown)
        await shown.refresh()


def breakable(name: str) -> Markup:
    """Return a name of many parts that may be broken between them, and not within a word."""
    return Markup("<wbr>").join(re.findall(r"[^/_]*[/_]?", name))


def _splits(view: View, names: Sequence[str], chosen: Filter, shown: parts.Paged) -> None:
    async def changed(event: Any) -> None:
        chosen.split = event.value or ""
        await shown.restart()

    options = {"": view.say("evaluation.all_tasks")} | {name: name for name in names}
    select = ui.select(options, value="", on_change=changed).props("dense outlined options-dense")
    select.props(f'aria-label="{view.say("evaluation.task")}"').classes("c-choice")
