"""Datasets: the list, and one dataset with its samples, funnel, rejects, licences and versions."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

import orjson
from markupsafe import Markup
from nicegui import ui

from catena.console import cells, parts
from catena.console.page import page
from catena.console.pages.labels import labelling
from catena.console.parts import Column, Slice
from catena.console.read import datasets as read
from catena.console.view import View
from catena.core.types import UNDIVIDED
from catena.hub import versions as history
from catena.hub.diff import RowChange

TEXT = 400
"""Characters of a row's text in a table."""


@page(name="datasets", path="/datasets", icon="dataset", action="data")
async def datasets(view: View) -> None:
    """List the datasets."""
    found = await parts.read(read.listed, view.workspace)
    parts.heading(view.say("datasets.title"), view.say("datasets.lead"))
    if not found:
        with parts.card():
            parts.empty(view.say("datasets.none"), "catena run recipes/python-helper.yaml")
        return
    heads = [
        Column(view.say("datasets.name"), wide=True),
        Column(view.say("datasets.shape"), phone=False),
        Column(view.say("datasets.rows"), "right"),
        Column(view.say("datasets.rejects"), "right", phone=False),
        Column(view.say("datasets.licence"), phone=False),
        Column(view.say("datasets.made"), "right"),
    ]

    def load(offset: int, limit: int, search: str) -> Slice:
        kept = [one for one in found if search.lower() in one.name.lower()]
        return Slice([_listed(view, one) for one in kept[offset : offset + limit]], len(kept))

    with parts.card():
        await parts.paged(view, heads, load, search=len(found) > 8)


def _listed(view: View, one: read.Listed) -> list[object]:
    ref = f"{one.name}@{one.version}"
    named = cells.link(view.href("datasets", ref), one.name)
    return [
        cells.join(named, cells.badge(f"@{one.version}"), *(cells.badge(tag, "good") for tag in one.tags)),
        view.say(f"datasets.shape_{one.artifact.shape}"),
        cells.count(one.artifact.rows),
        cells.count(one.artifact.rejects) if one.artifact.rejects else cells.NOTHING,
        one.artifact.license,
        cells.when(view.language, one.created),
    ]


@page(name="datasets", path="/datasets/{ref:path}", icon="dataset", action="data", menu=False)
async def dataset(view: View) -> None:
    """Show one dataset, in tabs."""
    ref = view.parameters["ref"]
    found = await parts.read(read.opened, view.workspace, ref)
    above = cells.link(view.href("datasets"), view.say("datasets.title"))
    parts.heading(found.name or cells.digest(found.ref), _lead(view, found), over=above)
    _figures(view, found)
    drawn: dict[str, Callable[[View, read.Opened], Awaitable[None]]] = {
        "samples": _samples,
        "funnel": _funnel,
        "rejects": _rejects,
        "licences": _licences,
        "versions": _versions,
        "labels": labelling,
    }
    tab = view.query.get("tab", "samples")
    tab = tab if tab in drawn else "samples"
    names = [(key, view.say(f"datasets.tab_{key}")) for key in drawn if key != "labels" or found.name]
    parts.tabs(view, names, tab, "datasets", found.ref)
    await drawn[tab](view, found)


def _lead(view: View, found: read.Opened) -> Markup:
    shown = [cells.badge(name.rpartition("@")[2], "good") for name in found.refs if not _numbered(name)]
    version = found.ref.rpartition("@")[2] if found.name else ""
    facts = [f"@{version}" if version else "", view.say(f"datasets.shape_{found.artifact.shape}")]
    made = cells.when(view.language, found.artifact.created)
    return cells.join(*facts, *shown, cells.digest(found.artifact.digest), made)


def _numbered(ref: str) -> bool:
    return ref.rpartition("@")[2].isdecimal()


def _figures(view: View, found: read.Opened) -> None:
    artifact = found.artifact
    splits = ", ".join(f"{_split(view, name)} {split.rows:,}" for name, split in artifact.splits.items())
    stage = found.run.stage if found.run else ""
    parts.figures(
        [
            (view.say("datasets.rows"), cells.count(artifact.rows), splits),
            (view.say("datasets.rejects"), cells.count(artifact.rejects)),
            (view.say("datasets.size"), cells.size(sum(split.bytes for split in artifact.splits.values()))),
            (view.say("datasets.licence"), artifact.license or view.say("datasets.no_licence"), stage),
        ]
    )


def _split(view: View, name: str) -> str:
    return view.say("datasets.split_all") if name == UNDIVIDED else name


async def _samples(view: View, found: read.Opened) -> None:
    wanted = view.query.get("sample", "")
    if wanted:
        await _one(view, found, wanted)
        return
    heads = [
        Column(view.say("datasets.text"), wide=True),
        Column(view.say("datasets.split"), phone=False),
        Column(view.say("datasets.source"), phone=False),
    ]
    only = {"split": ""}

    def load(offset: int, limit: int, search: str) -> Slice:
        hits = read.rows(view.workspace, found.ref, "samples", (offset, limit), search, only["split"])
        return Slice([_row(view, found, row) for row in hits.rows], hits.total)

    with parts.card():
        shown = await parts.paged(view, heads, load, search=True)
        if len(found.artifact.splits) > 1:
            splits = {"": view.say("datasets.all_splits")} | {one: _split(view, one) for one in found.artifact.splits}
            with shown.tools:
                _choice(splits, lambda value: only.update(split=value), shown, view.say("datasets.split"))


def _choice(options: Mapping[str, str], keep: Callable[[str], None], shown: parts.Paged, label: str) -> None:
    """Show a choice that limits a table."""

    async def chosen(event: Any) -> None:
        keep(event.value or "")
        await shown.restart()

    made = ui.select(dict(options), value="", on_change=chosen).props("dense outlined options-dense")
    made.classes("c-choice").props(f'aria-label="{label}"').move(target_index=0)


def _row(view: View, found: read.Opened, row: Mapping[str, Any]) -> list[object]:
    link = view.href("datasets", found.ref, tab="samples", sample=str(row["_id"]))
    text = Markup('<a class="c-clamp c-plainlink" href="{}" dir="auto">{}</a>').format(link, _short(row))
    return [text, row["_split"] or "", cells.text(row["_source"] or "", 80)]


def _short(row: Mapping[str, Any]) -> Markup:
    return cells.text(read.text_of(row).strip(), TEXT)


async def _one(view: View, found: read.Opened, id: str) -> None:
    row = await parts.read(read.row, view.workspace, found.ref, id)
    if row is None:
        parts.trouble(view.say("datasets.no_sample", id=id), "")
        return
    with parts.columns(300):
        with parts.card(view.say("datasets.sample")):
            if row.get("messages") is not None:
                turn = Markup('<div class="c-turn"><b>{}</b><div class="c-prose" dir="auto">{}</div></div>')
                parts.html(Markup("").join(turn.format(one["role"], one["content"]) for one in row["messages"]))
            else:
                parts.prose(read.text_of(row))
        with parts.card(view.say("datasets.metadata")):
            parts.facts(
                [
                    ("id", cells.code(row["_id"])),
                    (view.say("datasets.split"), row["_split"]),
                    (view.say("datasets.source"), row["_source"]),
                    (view.say("datasets.licence"), row["_license"]),
                    (view.say("datasets.parents"), cells.join(*(cells.code(one) for one in row["_parents"] or ()))),
                ]
            )
            told = orjson.dumps(read.metadata_of(row), option=orjson.OPT_INDENT_2).decode()
            parts.code(told)


async def _funnel(view: View, found: read.Opened) -> None:
    steps = await parts.read(read.funnel, view.workspace, found.ref)
    with parts.card(view.say("datasets.tab_funnel"), view.say("datasets.funnel_lead")):
        if not steps:
            parts.empty(view.say("datasets.no_funnel"))
            return
        most = max(max(step.rows_in, step.rows_out) for step in steps) or 1
        parts.html(Markup("").join(_step(view, step, most) for step in steps)).classes("c-flow")


def _step(view: View, step: read.Step, most: int) -> Markup:
    lost = sum(step.rejected.values())
    why = [f"{reason} {count:,}" for reason, count in sorted(step.rejected.items(), key=lambda one: -one[1])]
    done = ", ".join(f"{name} {count:,}" for name, count in step.changed.items())
    said = view.say("datasets.in_out", rows_in=f"{step.rows_in:,}", rows_out=f"{step.rows_out:,}")
    lines = [said, ", ".join(why), view.say("datasets.changed", what=done) if done else ""]
    bar = Markup('<div class="c-flowbar"><i style="width:{:.2f}%"></i><i style="width:{:.2f}%"></i></div>').format(
        100 * step.rows_out / most, 100 * lost / most
    )
    name = cells.link(view.href("datasets", step.ref, tab="funnel"), step.ref)
    left = Markup("<div>{}<div class='c-sub'>{}</div></div>").format(name, step.stage)
    below = Markup("").join(Markup('<div class="c-sub">{}</div>').format(line) for line in lines if line)
    return left + Markup("<div>{}{}</div>").format(bar, below)


async def _rejects(view: View, found: read.Opened) -> None:
    reasons = await parts.read(read.reasons, view.workspace, found.ref)
    if not reasons:
        with parts.card():
            parts.empty(view.say("datasets.no_rejects"))
        return
    heads = [
        Column(view.say("datasets.text"), wide=True),
        Column(view.say("datasets.reason")),
        Column(view.say("datasets.detail"), phone=False),
    ]
    only = {"reason": ""}

    def load(offset: int, limit: int, search: str) -> Slice:
        hits = read.rows(view.workspace, found.ref, "rejects", (offset, limit), search, only["reason"])
        clamp = Markup('<div class="c-clamp" dir="auto">{}</div>')
        return Slice(
            [
                [clamp.format(_short(row)), cells.badge(row["_reason"]), cells.text(row["_detail"] or "", 120)]
                for row in hits.rows
            ],
            hits.total,
        )

    with parts.card():
        shown = await parts.paged(view, heads, load, search=True)
        options = {"": view.say("datasets.all_reasons")} | {one: f"{one} ({n:,})" for one, n in reasons.items()}
        with shown.tools:
            _choice(options, lambda value: only.update(reason=value), shown, view.say("datasets.reason"))


async def _licences(view: View, found: read.Opened) -> None:
    counts = await parts.read(read.licences, view.workspace, found.ref)
    total = sum(counts.values()) or 1
    heads = [
        Column(view.say("datasets.licence"), wide=True),
        Column(view.say("datasets.rows"), "right"),
        Column(view.say("datasets.share")),
    ]

    def load(offset: int, limit: int, search: str) -> Slice:
        rows, count = read.sources(view.workspace, found.ref, (offset, limit), search)
        return Slice([[name or cells.NOTHING, cells.count(number)] for name, number in rows], count)

    with parts.columns(360):
        with parts.card(view.say("datasets.licence"), view.say("datasets.licences_lead")):
            none = cells.badge(view.say("datasets.no_licence"), "warn")
            parts.table(
                heads,
                [
                    [name or none, cells.count(number), cells.bar(number / total, cells.percent(number / total))]
                    for name, number in list(counts.items())[:100]
                ],
            )
        with parts.card(view.say("datasets.sources")):
            await parts.paged(
                view, [Column(view.say("datasets.source"), wide=True), heads[1]], load, search=True, size=20
            )


async def _versions(view: View, found: read.Opened) -> None:
    log = await parts.read(history.log, view.workspace.store, found.name) if found.name else []
    heads = [
        Column(view.say("datasets.version")),
        Column(view.say("datasets.message"), wide=True),
        Column(view.say("datasets.rows"), "right"),
        Column(view.say("datasets.author"), phone=False),
        Column(view.say("datasets.made"), "right"),
    ]
    rows = []
    for entry in log[:200]:
        marks = [ref for ref in (*entry.refs, *entry.branches) if ref]
        at = next((ref for ref in marks if ref.isdecimal()), entry.digest[:12])
        link = cells.link(view.href("datasets", f"{found.name}@{at}", tab="versions"), f"@{at}")
        told = cells.join(*(cells.badge(mark, "good") for mark in marks if mark != at))
        counts = entry.commit.changes
        change = f"+{counts['added']:,} −{counts['removed']:,} ~{counts['changed']:,}" if counts else ""
        said = cells.stack(cells.text(entry.commit.message or entry.commit.operation, 200), change)
        when = cells.when(view.language, entry.commit.time)
        rows.append([cells.join(link, told), said, cells.count(entry.commit.rows), entry.commit.author, when])
    with parts.card(view.say("datasets.tab_versions")):
        parts.table(heads, rows)
    await _compare(view, found)


async def _compare(view: View, found: read.Opened) -> None:
    with parts.card(view.say("datasets.compare")) as box:
        box.props('id="compare"')
        if len(found.others) < 2 and not view.query.get("before"):
            parts.empty(view.say("datasets.one_version"))
            return
        after = found.ref
        older = [one for one in found.others if one != after]
        before = view.query.get("before") or older[0]
        options = list(dict.fromkeys([before, *older]))

        def turn(event: Any) -> None:
            ui.navigate.to(view.path("datasets", found.ref, tab="versions", before=str(event.value)))

        with ui.element("div").classes("c-tools"):
            made = ui.select(options, value=before, label=view.say("datasets.before"), on_change=turn)
            made.props("dense outlined options-dense").classes("c-search")
            parts.html(Markup("→ {} {}").format(view.say("datasets.after"), cells.code(after)))
        first = await parts.read(read.compared, view.workspace, before, after, (0, 1))
        parts.html(view.say("datasets.counts", **{name: f"{count:,}" for name, count in first.counts.items()}))
        if not first.total:
            parts.empty(view.say("datasets.same"))
            return
        heads = [Column(view.say("datasets.row")), Column(view.say("datasets.difference"), wide=True)]
        await parts.paged(view, heads, partial(_changes, view, before, after), size=20)


def _changes(view: View, before: str, after: str, offset: int, limit: int, _: str) -> Slice:
    found = read.compared(view.workspace, before, after, (offset, limit))
    tones: dict[str, cells.Tone] = {"added": "good", "removed": "bad", "changed": "busy"}
    rows = []
    for change in found.rows:
        kind = cells.badge(view.say(f"datasets.kind_{change.kind}"), tones[change.kind])
        rows.append([cells.stack(kind, cells.code(change.key, 26)), _difference(change)])
    return Slice(rows, found.total)


def _difference(change: RowChange) -> Markup:
    if change.kind != "changed":
        row = change.before if change.before is not None else change.after
        return Markup('<div class="c-clamp" dir="auto">{}</div>').format(_short(row or {}))
    one = Markup('<div><span class="c-sub">{}</span> <span class="c-was">{}</span> <span class="c-is">{}</span></div>')
    return Markup("").join(
        one.format(item.field, cells.text(_value(item.before), 160), cells.text(_value(item.after), 160))
        for item in change.fields[:12]
    )


def _value(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else orjson.dumps(value, default=lambda one: f"<{len(one)} bytes>").decode()
