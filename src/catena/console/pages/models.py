"""Models: the list, and one model with its card, lineage, scores, compressed versions, change log and tags."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Any

from markupsafe import Markup, escape
from nicegui import ui

from catena.console import cells, parts
from catena.console.charts import COLOURS, lines
from catena.console.page import page
from catena.console.pages.tags import tags
from catena.console.parts import Column, Slice
from catena.console.read.books import books
from catena.console.read.models import SORTS, ModelBook, ModelRow, ModelView, Pareto
from catena.console.view import View
from catena.core.types import Score
from catena.govern.access import Denied
from catena.govern.changes import Change

SCORES_SHOWN = 2
LINEAGE_SHRINKS = 0.72
"""As far as a wide drawing is made smaller before it scrolls."""
REFRESH_S = 10.0
PRODUCTION = "production"
Draw = Callable[[View, ModelBook, ModelView], Awaitable[None]]


@page(name="models", path="/models", icon="psychology", action="models")
async def models(view: View) -> None:
    """List the models."""
    book = books(view.workspace).models
    rows = await parts.read(book.rows)
    parts.heading(view.say("models.title"), view.say("models.lead"))
    rows = [row for row in rows if view.person.may_use(row.name)]
    if not rows:
        with parts.card():
            parts.empty(view.say("models.none"), "catena run recipes/python-helper.yaml")
        return
    only = {"tag": view.query.get("tag", ""), "form": "", "sort": "changed"}

    def load(offset: int, limit: int, search: str) -> Slice:
        may_use = view.person.may_use
        found = book.find(search=search, offset=offset, limit=limit, may_use=may_use, **only)
        return Slice([_row(view, row) for row in found.rows], found.total)

    heads = [
        Column(view.say("models.name"), wide=True),
        Column(view.say("models.form"), phone=False),
        Column(view.say("models.parameters"), "right", phone=False),
        Column(view.say("models.size"), "right"),
        Column(view.say("models.scores"), "right", phone=False),
        Column(view.say("models.licence"), phone=False),
        Column(view.say("models.changed"), "right"),
    ]
    with parts.card():
        shown = await parts.paged(view, heads, load, search=True)
        with shown.tools:
            _choices(view, rows, only, shown)
    parts.live(view, REFRESH_S, shown.refresh, "models")


def _choices(view: View, rows: list[ModelRow], only: dict[str, str], shown: parts.Paged) -> None:
    marks = sorted({mark.partition("@")[0] for row in rows for mark in row.tags})
    forms = sorted({row.form for row in rows})
    sorts = {sort: view.say(f"models.sort_{sort}") for sort in SORTS}
    choices = (
        ("tag", view.say("models.tag"), {"": view.say("models.all_tags")} | {mark: mark for mark in marks}),
        (
            "form",
            view.say("models.form"),
            {"": view.say("models.all_forms")} | {form: _form(view, form) for form in forms},
        ),
        ("sort", view.say("models.sort"), sorts),
    )
    for key, label, options in choices:
        if len(options) < 3:
            continue

        async def chosen(event: Any, key: str = key) -> None:
            only[key] = event.value or ""
            await shown.restart()

        value = only[key] if only[key] in options else next(iter(options))
        select = ui.select(options, value=value, on_change=chosen).props("dense outlined options-dense")
        select.props(f'aria-label="{escape(label)}"').classes("c-choice")


def _row(view: View, row: ModelRow) -> list[object]:
    link = cells.link(view.href("models", f"{row.name}@{row.version}"), row.name)
    marks = [cells.badge(mark, "good" if mark.startswith(PRODUCTION) else "plain") for mark in row.tags]
    shown = [_score(name, score) for name, score in row.scores[:SCORES_SHOWN]]
    more = len(row.scores) - SCORES_SHOWN
    if more > 0:
        shown.append(Markup('<span class="c-sub">{}</span>').format(view.say("models.more_scores", n=more)))
    return [
        cells.stack(cells.join(link, cells.badge(f"@{row.version}"), *marks), row.architecture),
        cells.stack(_form(view, row.form), row.number_format),
        _compact(row.parameters) if row.parameters else cells.NOTHING,
        cells.size(row.size),
        Markup("<br>").join(shown) if shown else cells.NOTHING,
        Markup('<span class="c-nowrap">{}</span>').format(cells.text(row.license, 40)),
        cells.when(view.language, row.created),
    ]


def _form(view: View, form: str) -> str:
    said = view.say(f"models.form_{form}")
    return form if said.startswith("models.") else said


def _compact(count: int) -> str:
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if count >= size:
            return f"{count / size:.3g} {letter}"
    return str(count)


def _score(name: str, score: Score) -> Markup:
    short = name.partition("/")[2] or name
    return Markup('<span class="c-sub" title="{}">{}</span> {}').format(name, short, _value(score))


def _value(score: Score) -> str:
    return f"{cells.number(score.value)} {score.unit}".strip()


def _interval(score: Score) -> str:
    if score.low is None or score.high is None:
        return ""
    return f"{cells.number(score.low)} – {cells.number(score.high)}"


@page(name="models", path="/models/{ref:path}", icon="psychology", action="models", menu=False)
async def model(view: View) -> None:
    """Show one model, in tabs."""
    book, ref = books(view.workspace).models, view.parameters["ref"]
    found: ModelView = await parts.read(book.one, ref)
    if not view.person.may_use(found.name):
        raise Denied(view.say("models.not_in_scope", name=found.name), code="forbidden", status=403)
    over = cells.link(view.href("models"), view.say("models.title"))
    marks = [cells.badge(tag, "good" if tag == PRODUCTION else "plain") for tag in found.tags]
    lead = cells.join(cells.badge(found.ref.rpartition("@")[2] and f"@{found.ref.rpartition('@')[2]}"), *marks,
                      cells.digest(found.model.digest), cells.when(view.language, found.model.created))  # fmt: skip
    parts.heading(found.name, lead, over=over)
    _figures(view, found)
    drawn: dict[str, Draw] = {"card": _card, "scores": _scores, "lineage": _lineage, "changes": _changes, "tags": tags}
    if found.pareto is not None:
        drawn["compression"] = _compression
    drawn["files"] = _files
    tab = view.query.get("tab", "card")
    tab = tab if tab in drawn else "card"
    parts.tabs(view, [(key, view.say(f"models.tab_{key}")) for key in drawn], tab, "models", ref)
    await drawn[tab](view, book, found)


def _figures(view: View, found: ModelView) -> None:
    model = found.model
    base = cells.link(view.href("models", found.base), found.base) if found.base else ""
    context = f"{model.context:,}" if model.context else cells.NOTHING
    run = found.made_by
    made = cells.link(view.href("runs", run.group), run.stage) if run is not None and view.may("data") else ""
    parts.figures(
        [
            (
                view.say("models.parameters"),
                _compact(model.parameters) if model.parameters else cells.NOTHING,
                model.architecture,
            ),
            (view.say("models.size"), cells.size(model.size), base),
            (view.say("models.format"), model.quantization or model.dtype or cells.NOTHING, _form(view, model.form)),
            (view.say("models.context"), context, view.say("models.tokens") if model.context else ""),
            (view.say("models.licence"), model.license or view.say("models.no_licence"), made),
        ]
    )


async def _card(view: View, book: ModelBook, found: ModelView) -> None:
    text = below_the_title(await parts.read(book.card, found, view.language))
    with parts.card():
        ui.markdown(text, extras=["tables", "fenced-code-blocks", "code-friendly"]).classes("c-markdown")


def below_the_title(text: str) -> str:
    """Return Markdown whose headings stand one level lower: the page has its title already. Blocks of code stay."""
    pieces = re.split(r"(^```.*?^```)", text, flags=re.MULTILINE | re.DOTALL)
    lower = [re.sub(r"^#{1,5} ", r"#\g<0>", piece, flags=re.MULTILINE) for piece in pieces[::2]]
    return "".join(piece for pair in zip(lower, [*pieces[1::2], ""], strict=True) for piece in pair)


async def _scores(view: View, book: ModelBook, found: ModelView) -> None:
    if not found.measured:
        with parts.card():
            parts.empty(view.say("models.no_scores"), f"catena evaluate {found.ref} --tasks basics")
        return
    heads = [
        Column(view.say("models.score"), wide=True),
        Column(view.say("models.value"), "right"),
        Column(view.say("models.interval"), "right", phone=False),
        Column(view.say("models.n"), "right", phone=False),
    ]
    for one in found.measured:
        link = cells.link(view.href("evaluation", one.digest), view.say("models.samples"))
        note = cells.join(cells.when(view.language, one.created), link) if view.may("data") else ""
        with parts.card(one.suite, note):
            parts.table(
                heads,
                [
                    [name, _value(score), _interval(score), f"{score.n:,}" if score.n else ""]
                    for name, score in one.scores.items()
                ],
            )


async def _lineage(view: View, book: ModelBook, found: ModelView) -> None:
    drawing = await parts.read(book.lineage, found)
    width = re.search(r'width="(\d+)"', drawing)
    least = f"--least:{LINEAGE_SHRINKS * int(width[1]):.0f}px" if width else ""
    with parts.card(view.say("models.tab_lineage"), view.say("models.lineage_lead")):
        parts.html(Markup(drawing)).classes("c-lineage").props('tabindex="0"').style(
            least
        )  # every text in it is escaped


async def _changes(view: View, book: ModelBook, found: ModelView) -> None:
    changes = await parts.read(book.changes, found)
    with parts.card(view.say("models.tab_changes"), view.say("models.changes_lead")):
        if not changes:
            parts.empty(view.say("models.no_changes"))
        parts.html(Markup("").join(_change(view, change) for change in changes))


def _change(view: View, change: Change) -> Markup:
    at = cells.digest(change.digest) if change.digest else ""
    if change.what == "version":
        name = view.say("models.version_n", n=change.detail.rpartition(" ")[2])
        title = Markup("<div><b>{}</b> {}</div>").format(name, at)
    else:
        word = change.detail.partition(":" if at else " ")[0]
        told = view.say("models.tag_put" if at else "models.tag_gone")
        title = Markup("<div>{} {} {}</div>").format(cells.badge(word, "good" if at else "plain"), told, at)
    by = " · ".join(part for part in (change.run, change.by) if part)
    given = ", ".join(f"{name}: {what}" for name, what in change.inputs.items())
    changed = "\n".join(f"{name}: {what}" for name, what in change.changed.items())
    scores = ", ".join(f"{name} {cells.number(value)}" for name, value in change.scores.items())
    below = [line for line in (by, given, scores) if line]
    more = Markup("").join(Markup('<div class="c-sub">{}</div>').format(line) for line in below)
    if changed:
        more += Markup('<pre class="c-pre">{}</pre>').format(changed)
    one = Markup('<div class="c-change c-{}">{}{}<div>{}</div></div>')
    return one.format(change.what, title, cells.when(view.language, change.time), more)


async def _compression(view: View, book: ModelBook, found: ModelView) -> None:
    pareto = found.pareto
    assert pareto is not None
    with parts.card(view.say("models.tab_compression"), view.say("models.pareto_lead")):
        if pareto.measure and len(pareto.made) > 1:
            ui.echart(_pareto_options(view, pareto)).classes("c-chart")
        heads = [
            Column(view.say("models.name"), wide=True),
            *(Column(_measure(view, name), "right") for name in pareto.columns),
        ]
        rows = []
        for one in pareto.made:
            name = cells.link(view.href("models", one.label), one.label)
            best = cells.badge(view.say("models.unbeaten"), "good") if one.best else ""
            values = [_measured(name_, one.values.get(name_)) for name_ in pareto.columns]
            rows.append([cells.join(name, best), *values])
        parts.table(heads, rows)


def _measure(view: View, name: str) -> str:
    said = view.say(f"models.measure_{name}")
    return name if said.startswith("models.") else said


def _measured(name: str, value: float | None) -> object:
    if value is None:
        return cells.NOTHING
    return cells.size(value) if name == "size" else cells.number(value)


def _pareto_options(view: View, pareto: Pareto) -> dict[str, Any]:
    options = lines(
        [], dark=parts.is_dark(view), x=view.say("models.size_mb"), y=_measure(view, pareto.measure), zoom=False
    )
    ink = "#e6ebef" if parts.is_dark(view) else "#17212b"

    def series(name: str, best: bool, colour: str) -> dict[str, Any]:
        chosen = sorted((one for one in pareto.made if one.best is best), key=lambda one: one.values["size"])
        return {
            "name": name,
            "type": "line" if best else "scatter",
            "symbol": "circle",
            "symbolSize": 10,
            "itemStyle": {"color": colour},
            "lineStyle": {"color": colour, "width": 1.4},
            "label": {"show": True, "position": "top", "formatter": "{b}", "color": ink, "fontSize": 11.5},
            "data": [
                {"name": one.label, "value": [one.values["size"] / 1e6, one.values[pareto.measure]]} for one in chosen
            ],
        }

    options["series"] = [
        series(view.say("models.unbeaten"), True, COLOURS[0]),
        series(view.say("models.beaten"), False, COLOURS[1]),
    ]
    options["legend"] = {**options["legend"], "show": True, "data": [one["name"] for one in options["series"]]}
    options["grid"] = {"left": 12, "right": 60, "top": 64, "bottom": 34, "containLabel": True}
    options["tooltip"] = {**options["tooltip"], "trigger": "item"}
    options["xAxis"] |= {"scale": True, "min": None, "max": None, "nameLocation": "middle", "nameGap": 28}
    options["yAxis"] |= {"boundaryGap": ["8%", "16%"]}
    return options


async def _files(view: View, book: ModelBook, found: ModelView) -> None:
    heads = [
        Column(view.say("models.file"), wide=True),
        Column(view.say("models.size"), "right"),
        Column("SHA-256", phone=False),
    ]
    with parts.card(view.say("models.tab_files")):
        parts.table(
            heads, [[cells.code(one.path), cells.size(one.size), cells.digest(one.sha256)] for one in found.model.files]
        )
