"""Overview: the chain as a drawing, what runs, what is in production, what happened last."""

from __future__ import annotations

from markupsafe import Markup

from catena.console import cells, parts
from catena.console.chain import draw
from catena.console.page import page
from catena.console.parts import Column
from catena.console.read import overview as read
from catena.console.view import View

EVERY_S = 3.0
TONES: dict[str, cells.Tone] = {"tag": "good", "failed": "bad", "cancelled": "warn", "interrupted": "warn"}


@page(name="overview", path="/", icon="hub", action="models")
async def overview(view: View) -> None:
    """Draw the overview. What runs and what happened is the business of who may see data."""
    found: read.Overview = await parts.read(read.overview, view.workspace)
    parts.heading(view.say("overview.title"))
    totals = found.totals
    parts.figures(
        [
            (view.say("overview.datasets"), cells.count(totals.datasets)),
            (view.say("overview.models"), cells.count(totals.models)),
            (view.say("overview.reports"), cells.count(totals.reports)),
            (view.say("overview.runs"), cells.count(totals.runs)),
        ]
    )
    with parts.card(view.say("overview.chain"), view.say("overview.chain_lead")):
        if found.chain.columns:
            drawing = parts.html(_drawing(view, found.chain))
        else:
            drawing = parts.empty(view.say("overview.no_chain"), "catena run recipes/python-helper.yaml")
    with parts.columns(360):
        with parts.card(view.say("overview.production")):
            standing = parts.html(_production(view, found))
        if not view.may("data"):
            return
        with parts.card(view.say("overview.running")):
            running = parts.html(_running(view, found))
    with parts.card(view.say("overview.events")):
        events = parts.html(_events(view, found))
    last = found

    async def again() -> None:
        nonlocal last
        now: read.Overview = await parts.read(read.overview, view.workspace)
        if now == last:
            return
        if now.chain != last.chain and now.chain.columns:
            drawing.content = str(_drawing(view, now.chain))
        last = now
        standing.content, running.content = str(_production(view, now)), str(_running(view, now))
        events.content = str(_events(view, now))

    parts.live(view, EVERY_S, again, "data")


def _drawing(view: View, chain: read.Chain) -> Markup:
    kinds = {"dataset": "datasets", "model": "models", "production": "models", "report": "evaluation"}

    def href(box: read.Box) -> str:
        # Who may not see data is led nowhere, rather than to a page that refuses.
        return view.href(kinds[box.kind], box.ref) if view.may("data") or box.kind != "dataset" else view.href()

    return draw(chain, lambda name: view.say(f"overview.column_{name}"), href)


def _production(view: View, found: read.Overview) -> Markup:
    if not found.production:
        return Markup('<p class="c-empty">{}<code class="c-command">{}</code></p>').format(
            view.say("overview.no_production"), "catena tag NAME production"
        )
    heads = [
        Column(view.say("overview.model"), wide=True),
        Column(view.say("overview.parameters"), "right"),
        Column(view.say("overview.size"), "right"),
    ]
    rows = []
    for one in found.production:
        ref = f"{one.name}@{one.version}" if one.version else one.model.digest
        since = Markup(view.say("overview.since", when="{}")).format(cells.when(view.language, one.since))
        named = cells.stack(cells.link(view.href("models", ref), ref), since)
        rows.append([named, cells.count(one.model.parameters), cells.size(one.model.size)])
    return parts.table_html(heads, rows)


def _running(view: View, found: read.Overview) -> Markup:
    if not found.running:
        return Markup('<p class="c-empty">{}</p>').format(view.say("overview.nothing_runs"))
    heads = [Column(view.say("overview.step"), wide=True), Column(view.say("overview.started"), "right")]
    rows = [
        [
            cells.stack(cells.link(view.href("runs", run.group, step=run.step), run.name or run.step), run.stage),
            cells.when(view.language, run.started),
        ]
        for run in found.running
    ]
    return parts.table_html(heads, rows)


def _events(view: View, found: read.Overview) -> Markup:
    if not found.events:
        return Markup('<p class="c-empty">{}</p>').format(view.say("overview.no_events"))
    one = Markup('<li><i class="c-dot c-{}"></i><div><b>{}</b> {}</div>{}</li>')
    lines = [
        one.format(
            TONES.get(event.kind, "plain"),
            event.ref,
            view.say(f"overview.event_{event.kind}", what=event.what),
            cells.when(view.language, event.at),
        )
        for event in found.events
    ]
    return Markup('<ul class="c-events">{}</ul>').format(Markup("").join(lines))
