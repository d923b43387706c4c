"""Two models side by side: what each score gained, with the statistic of pairs, and their answers one by one."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup
from nicegui import ui

from catena.console import cells, parts
from catena.console.page import page
from catena.console.pages.evaluation import breakable, value_of
from catena.console.pages.samples import Filter, chips, listed, pair_html
from catena.console.parts import Column
from catena.console.read.books import books
from catena.console.read.evaluation import Comparison, Gain
from catena.console.read.samples import PAIRINGS, Pairs
from catena.console.view import View
from catena.core.errors import UsageError

PAIRS = 15


@page(name="evaluation", path="/evaluation/compare", icon="leaderboard", action="data", menu=False)
async def compare(view: View) -> None:
    """Show two evaluations side by side."""
    book = books(view.workspace).evaluation
    over = cells.link(view.href("evaluation"), view.say("evaluation.title"))
    first, second = view.query.get("first", ""), view.query.get("second", "")
    if not (first and second):
        raise UsageError(view.say("evaluation.choose_two"), hint=view.say("evaluation.choose_two_hint"))
    found: Comparison = await parts.read(book.compare, first, second)
    links = [
        cells.link(view.href("evaluation", report.digest), name)
        for report, name in zip(found.reports, found.names, strict=True)
    ]
    with parts.heading(view.say("evaluation.comparison"), Markup("{} ⟷ {}").format(*links), over=over):
        icon = '<i class="material-icons" title="{}" aria-hidden="true">swap_horiz</i><span class="c-heard">{}</span>'
        swap = Markup(icon).format(*2 * [view.say("evaluation.swap")])
        parts.html(parts.link_button(view, swap, "evaluation", "compare", first=second, second=first))
    _gains(view, found)
    with parts.card(view.say("evaluation.pairs")):
        if found.pairs is None:
            parts.empty(view.say("evaluation.no_pairs"))
        else:
            await _pairs(view, found, found.pairs)


def _gains(view: View, found: Comparison) -> None:
    heads = [
        Column(view.say("evaluation.score"), wide=True),
        Column(found.names[0], "right"),
        Column(found.names[1], "right"),
        Column(view.say("evaluation.gain"), "right"),
        Column(view.say("evaluation.interval"), "right", phone=False),
        Column(view.say("evaluation.p_value"), "right", phone=False),
        Column("", phone=False),
    ]
    with parts.card(view.say("evaluation.tab_scores"), view.say("evaluation.gain_lead")):
        parts.table(heads, [_gain(view, gain) for gain in found.gains])


def _gain(view: View, gain: Gain) -> list[object]:
    way = "c-up" if gain.value > 0 else "c-down" if gain.value < 0 else ""
    value = Markup('<b class="{}">{}{}</b>').format(way, "+" if gain.value > 0 else "", cells.number(gain.value, 3))
    ends = (
        f"{cells.number(gain.low, 3)} – {cells.number(gain.high, 3)}"
        if gain.low is not None and gain.high is not None
        else ""
    )
    judged = ""
    if gain.p_value is not None:
        word = view.say("evaluation.certain") if gain.certain else view.say("evaluation.uncertain")
        judged = cells.badge(word, "good" if gain.certain else "plain")
    p_value = "" if gain.p_value is None else "< 0.001" if gain.p_value < 0.001 else f"{gain.p_value:.3f}"
    return [breakable(gain.name), value_of(gain.first), value_of(gain.second), value, ends, p_value, judged]


async def _pairs(view: View, found: Comparison, pairs: Pairs) -> None:
    chosen = Filter(kind=view.query.get("show", "lost" if pairs.judged and pairs.counts()["lost"] else ""))

    def load(offset: int, limit: int, search: str) -> parts.Slice:
        kind: Any = chosen.kind
        part = pairs.page(split=chosen.split, pairing=kind, search=search, offset=offset, limit=limit)
        return parts.Slice([pair_html(view, pair, found.names) for pair in part.rows], part.total)

    pages = listed(view, load, PAIRS)
    with pages.tools, ui.element("div").classes("c-filters"):
        if pairs.judged:
            counts = pairs.counts()
            shown = {"": f"{view.say('evaluation.all')} {len(pairs):,}"}
            shown |= {kind: f"{view.say(f'evaluation.{kind}')} {counts[kind]:,}" for kind in PAIRINGS}
            chips(view, shown, chosen, pages)
    await pages.refresh()
