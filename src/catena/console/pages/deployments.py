"""Deployments: a gateway's replicas, rates and latency as they are, releases under way, tags, what was done."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from markupsafe import Markup
from nicegui import ui

from catena.console import cells, parts
from catena.console.charts import Curve, lines
from catena.console.page import page
from catena.console.pages.releases import ReleaseCards
from catena.console.parts import Column
from catena.console.read.gateway import Replica, Snapshot, watch_of
from catena.console.read.metrics import Counts, Rates
from catena.console.read.production import PRODUCTION, Tagged, tagged
from catena.console.view import View
from catena.core.errors import CatenaError
from catena.sdk import ReleaseAct

LOOK_S = 2.0
LEAST_SHOWN_S = -60.0
MOST_CURVES = 6
MOST_ACTS = 30
TONES: dict[str, cells.Tone] = {"ready": "good", "starting": "busy", "waiting": "warn", "draining": "plain"}


@page(name="deployments", path="/deployments", icon="dns", action="metrics")
async def deployments(view: View) -> None:
    """Draw what runs, or what is in production where nothing runs."""
    address = view.gateway
    where = view.say("deployments.at", url=address) if address else ""
    begin = parts.heading(view.say("deployments.title"), view.say("deployments.lead"), over=where)
    if address is None:
        with parts.card():
            hint = view.say("deployments.none_hint")
            parts.empty(view.say("deployments.none"), "catena up deploy.yaml", hint)
    else:
        Live(view, address).draw(begin)
    with parts.card(view.say("deployments.tags"), view.say("deployments.tags_note")):
        found = await parts.read(tagged, view.workspace)
        parts.table(_tag_heads(view), [_tag_row(view, one) for one in found]) if found else parts.empty(
            view.say("deployments.no_tags"), "catena tag MODEL@1 production"
        )


class Live:
    """What changes while one looks: each part is drawn once, and only what is different is sent."""

    def __init__(self, view: View, address: str) -> None:
        self._view, self._watch = view, watch_of(view.workspace, address)
        self._watch.visited()
        self._last: Snapshot | None = None

    def draw(self, begin: ui.element) -> None:
        """Draw all of it, and go on looking; in `begin` a release is started."""
        view = self._view
        self._status = parts.html("")
        self._figures = parts.html("", tag="dl").classes("c-figures")
        with parts.columns():
            self._requests = self._chart("deployments.chart_requests")
            self._first = self._chart("deployments.chart_first")
        self._releases = ReleaseCards(view, self._watch, begin, self.refresh)
        with parts.card(view.say("deployments.models"), view.say("deployments.window")) as self._models_card:
            self._models = parts.html("")
        with parts.card(view.say("deployments.replicas")) as self._replicas_card:
            self._replicas = parts.html("")
        with parts.card(view.say("deployments.acts"), view.say("deployments.acts_note")) as self._acts_card:
            self._acts = parts.html("")
        self._shown(False)
        ui.timer(0.0, self.refresh, once=True)  # a gateway that is slow must not hold up the page
        parts.live(view, LOOK_S, self.refresh, "metrics")

    def _chart(self, title: str) -> ui.echart:
        with parts.card(self._view.say(title), self._view.say("deployments.axis")):
            return ui.echart(_chart_options(self._view, [])).classes("c-chart c-smallchart")

    async def refresh(self) -> None:
        """Look, and show what is different; a gateway that does not answer leaves what was seen before."""
        view = self._view
        try:
            found = await self._watch.fresh(view.client, releases=view.may("releases"))
        except CatenaError as error:
            self._put(self._status, _trouble(view, error))
            self._shown(self._last is not None)
            return
        self._last = found
        self._shown(True)
        self._put(self._status, self._state(found))
        self._put(self._figures, parts.figures_html(_figures(view, found)))
        self._put(self._models, parts.table_html(_model_heads(view), _model_rows(view, found)))
        replicas = [_replica_row(view, model, one) for model, rows in found.replicas.items() for one in rows]
        nothing = Markup('<p class="c-empty">{}</p>').format(view.say("deployments.others_replicas"))
        self._put(self._replicas, parts.table_html(_replica_heads(view), replicas) if replicas else nothing)
        self._draw_charts(found)
        self._releases.show(found)
        acts = [_act_row(view, act) for act in found.acts[:MOST_ACTS]]
        nothing = Markup('<p class="c-empty">{}</p>').format(view.say("deployments.no_acts"))
        self._put(self._acts, parts.table_html(_act_heads(view), acts) if acts else nothing)
        self._acts_card.set_visibility(found.may_release and view.may("releases"))

    def _shown(self, anything: bool) -> None:
        for one in (self._figures, self._models_card, self._replicas_card, self._acts_card):
            one.set_visibility(anything)

    def _state(self, found: Snapshot) -> Markup:
        word = self._view.say("deployments.ready" if found.ready else "deployments.not_ready")
        return cells.badge(word, "good" if found.ready else "warn")

    def _draw_charts(self, found: Snapshot) -> None:
        models = list(found.now.counts)[:MOST_CURVES]
        for chart, value in ((self._requests, "requests"), (self._first, "first_p95_s")):
            curves = [Curve(model, *found.history.curve(model, value)) for model in models]
            chart.options.update(_chart_options(self._view, curves))
            chart.update()

    def _put(self, place: ui.html, content: Markup) -> None:
        if place.content != content:
            place.content = str(content)


def _chart_options(view: View, curves: list[Curve]) -> dict[str, Any]:
    """Return a chart of the last minute, or of more where more is known; without a sample its height says nothing."""
    options = lines(curves, dark=parts.is_dark(view), zoom=False)
    begin = min([LEAST_SHOWN_S, *(curve.x[0] for curve in curves if len(curve.x))])
    options["xAxis"] |= {"min": begin, "max": 0}
    options["yAxis"] |= {"min": 0}
    options["yAxis"]["axisLabel"]["show"] = any(y == y for curve in curves for y in curve.y)
    return options


def _trouble(view: View, error: CatenaError) -> Markup:
    inside = '<i class="material-icons" aria-hidden="true">cloud_off</i><div><strong>{}</strong><p>{}\n{}</p></div>'
    told = Markup(inside).format(view.say("deployments.away"), error.message, view.say("deployments.away_hint"))
    return Markup('<div class="c-trouble" role="alert">{}</div>').format(told)


def _figures(view: View, found: Snapshot) -> list[tuple[object, object, object]]:
    rates, counts = list(found.now.rates.values()), list(found.now.counts.values())
    asked = sum(one.requests for one in rates)
    failed = sum(one.requests * one.failed for one in rates) / asked if asked else 0.0
    refused = sum(one.refused for one in rates)
    running, waiting = (sum(getattr(one, name) for one in counts) for name in ("running", "waiting"))
    say = view.say
    return [
        (say("deployments.requests"), _rate(asked), say("deployments.refused", n=_rate(refused)) if refused else ""),
        (say("deployments.tokens"), _rate(sum(one.answer_tokens for one in rates)), ""),
        (say("deployments.first"), _worst(view, rates, "first_p95_s"), _half(view, rates, "first_p50_s")),
        (say("deployments.whole"), _worst(view, rates, "p95_s"), _half(view, rates, "p50_s")),
        (say("deployments.failed"), cells.percent(failed) if asked else cells.NOTHING, ""),
        (say("deployments.waiting"), f"{waiting:,.0f}", say("deployments.running", n=f"{running:,.0f}")),
    ]


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value else "0"


def _worst(view: View, rates: list[Rates], name: str) -> Markup:
    known = [value for one in rates if (value := getattr(one, name)) is not None]
    return cells.duration(view.language, max(known)) if known else cells.NOTHING


def _half(view: View, rates: list[Rates], name: str) -> str:
    found = _worst(view, rates, name)
    return "" if found == cells.NOTHING else view.say("deployments.half", value=found)


def _model_heads(view: View) -> list[Column]:
    say = view.say
    return [
        Column(say("deployments.model"), wide=True),
        Column(say("deployments.replicas"), "right"),
        Column(say("deployments.per_second"), "right"),
        Column(say("deployments.tokens_s"), "right"),
        Column(say("deployments.first"), "right"),
        Column(say("deployments.whole"), "right", phone=False),
        Column(say("deployments.failed"), "right", phone=False),
        Column(say("deployments.waiting"), "right", phone=False),
    ]


def _model_rows(view: View, found: Snapshot) -> list[list[object]]:
    rows: list[list[object]] = []
    for model in sorted({*found.now.counts, *found.replicas}):
        rates, counts = found.now.rates.get(model, Rates()), found.now.counts.get(model, Counts())
        replicas = found.replicas.get(model, ())
        ready = sum(one.phase == "ready" for one in replicas)
        rows.append(
            [
                cells.code(model),
                f"{ready}/{len(replicas)}" if replicas else cells.NOTHING,
                _rate(rates.requests),
                _rate(rates.answer_tokens),
                cells.duration(view.language, rates.first_p95_s),
                cells.duration(view.language, rates.p95_s),
                cells.percent(rates.failed) if rates.requests else cells.NOTHING,
                f"{counts.waiting:,.0f}",
            ]
        )
    return rows


def _replica_heads(view: View) -> list[Column]:
    say = view.say
    return [
        Column(say("deployments.model")),
        Column(say("deployments.replica")),
        Column(say("deployments.state")),
        Column(say("deployments.restarts"), "right"),
        Column(say("deployments.problem"), wide=True, phone=False),
    ]


def _replica_row(view: View, model: str, one: Replica) -> list[object]:
    state = cells.badge(view.say(f"deployments.phase_{one.phase}"), TONES.get(one.phase, "plain"))
    broken = cells.badge(view.say("deployments.broken"), "bad") if one.broken else ""
    problem = cells.text(one.problem, 300)
    return [_name(model), _name(one.id), cells.join(state, broken), f"{one.restarts:,}", problem]


def _name(text: str) -> Markup:
    return Markup('<span class="c-nowrap">{}</span>').format(cells.code(text))


def _tag_heads(view: View) -> list[Column]:
    say = view.say
    return [
        Column(say("deployments.model"), wide=True),
        Column(say("deployments.tag")),
        Column(say("deployments.version")),
        Column(say("deployments.scores"), phone=False),
        Column(say("deployments.moved"), "right"),
        Column(say("deployments.by"), phone=False),
    ]


def _tag_row(view: View, one: Tagged) -> list[object]:
    name = one.name if one.version is None else f"{one.name}@{one.version}"
    scores = Markup("<br>").join(f"{key} {cells.number(value)}" for key, value in list(one.scores.items())[:3])
    return [
        cells.link(view.href("models", name), one.name),
        cells.badge(one.tag, "good" if one.tag == PRODUCTION else "plain"),
        cells.digest(one.digest) if one.version is None else f"{one.version}",
        Markup('<span class="c-sub">{}</span>').format(scores) if scores else cells.NOTHING,
        cells.when(view.language, one.moved),
        cells.text(one.by),
    ]


def _act_heads(view: View) -> list[Column]:
    say = view.say
    return [
        Column(say("deployments.time")),
        Column(say("deployments.model")),
        Column(say("deployments.act")),
        Column(say("deployments.by")),
        Column(say("deployments.why"), wide=True, phone=False),
    ]


ACT_TONES: dict[str, cells.Tone] = {
    "promote": "good",
    "done": "good",
    "rollback": "bad",
    "step": "busy",
    "start": "busy",
}


def _act_row(view: View, act: ReleaseAct) -> list[object]:
    told = act.model_dump()
    known = told["act"] in ("start", "resume", "step", "promote", "rollback", "done")
    percent = cells.number(float(told.get("percent") or 0))
    word = view.say(f"deployments.act_{told['act']}", percent=percent) if known else told["act"]
    candidate = f"{told['candidate']}" if told.get("candidate") else ""
    return [
        cells.when(view.language, datetime.fromtimestamp(told["time"], UTC)),
        _name(told["model"]),
        cells.badge(word, ACT_TONES.get(told["act"], "plain")),
        cells.text(told["by"]),
        cells.text(told.get("reason") or candidate, 300),
    ]
