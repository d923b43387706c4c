"""Audit: how it stands, a verification that runs beside the pages, a search page by page, changes, compliance."""

from __future__ import annotations

from datetime import UTC, datetime

from markupsafe import Markup
from nicegui import ui

from catena.console import cells, parts
from catena.console.page import page
from catena.console.pages.entries import Search
from catena.console.parts import Column, Slice
from catena.console.read.audit import Check, Standing, checks_of, compliance, standing
from catena.console.read.production import changes
from catena.console.view import View
from catena.core.errors import CatenaError
from catena.govern.changes import Change

LOOK_S = 0.5
FRESH_S = 24 * 3600.0
"""Older than this a checkpoint is shown as a warning."""


@page(name="audit", path="/audit", icon="policy", action="audit")
async def audit(view: View) -> None:
    """Draw the audit."""
    parts.heading(view.say("audit.title"), view.say("audit.lead"))
    found: Standing = await parts.read(standing, view.workspace)
    if found.forged:
        parts.trouble(view.say("audit.forged"), view.say("audit.forged_hint"))
    if not found.records and not found.segments:
        with parts.card():
            command = "catena serve MODEL --auth --audit"
            parts.empty(view.say("audit.none"), command, view.say("audit.none_hint"))
    else:
        parts.figures(_figures(view, found))
        with parts.columns(420):
            with parts.card(view.say("audit.verify"), view.say("audit.verify_note")):
                Verify(view).draw()
            with parts.card(view.say("audit.compliance")):
                await _compliance(view)
        with parts.card(view.say("audit.search")):
            try:
                await Search(view).draw()
            except CatenaError as error:  # a log that was changed takes no note of a search; the rest is still told
                parts.trouble(error.message, error.hint)
    with parts.card(view.say("audit.changes"), view.say("audit.changes_note")):
        await parts.paged(view, _change_heads(view), lambda *asked: _changes(view, *asked), search=True, size=20)


def _figures(view: View, found: Standing) -> list[tuple[object, object, object]]:
    old = found.checkpoint is None or (datetime.now(UTC) - found.checkpoint).total_seconds() > FRESH_S
    hint = cells.badge(view.say("audit.checkpoint_hint"), "warn" if old else "plain")
    files = view.say("audit.files", n=f"{found.segments:,}", day=found.first_day)
    return [
        (view.say("audit.records"), f"{found.records:,}", ""),
        (view.say("audit.size"), cells.size(found.bytes), files),
        (view.say("audit.written"), cells.when(view.language, found.written), ""),
        (view.say("audit.checkpoint"), cells.when(view.language, found.checkpoint), hint),
        (view.say("audit.keep"), view.say("audit.days", n=found.keep_days), ""),
    ]


async def _compliance(view: View) -> None:
    found = await parts.read(compliance, view.workspace)
    if found is None:
        parts.empty(view.say("audit.compliance_none"), "catena compliance report")
        return
    if not found.signed:
        parts.trouble(view.say("audit.compliance_forged"), found.file)
        return
    tones: dict[str, cells.Tone] = {"held": "good", "failed": "bad", "no evidence": "warn"}
    words = {"held": "held", "failed": "failed", "no evidence": "unknown"}
    counts = [
        cells.badge(f"{found.counts.get(status, 0)} {view.say(f'audit.compliance_{word}')}", tones[status])
        for status, word in words.items()
    ]
    parts.html(Markup('<div class="c-acts">{}</div>').format(Markup("").join(counts)))
    at = cells.when(view.language, datetime.fromisoformat(found.time))
    parts.facts([(view.say("audit.time"), at), (view.say("audit.compliance_file"), cells.code(found.file))])


class Verify:
    """The card that begins a verification and shows the last one, whoever began it."""

    def __init__(self, view: View) -> None:
        self._view, self._checks = view, checks_of(view.workspace)

    def draw(self) -> None:
        """Draw the card."""
        view = self._view
        with ui.element("div").classes("c-acts"):
            self._start = parts.button(view.say("audit.verify_start"), self._begin, main=True, icon="verified_user")
            self._stop = parts.button(view.say("audit.verify_stop"), self._end, icon="stop")
            self._deep = ui.checkbox(view.say("audit.verify_deep")).props("dense")
        self._result = parts.html("").props('aria-live="polite"')
        self._show()
        parts.live(view, LOOK_S, self._look, "audit")

    def _begin(self) -> None:
        self._view.need("audit")
        begun = self._checks.begin(self._view.workspace, self._view.person.subject, deep=bool(self._deep.value))
        if not begun and self._checks.last is not None:
            parts.toast(self._view.say("audit.verify_busy", by=self._checks.last.by), tone="warn")
        self._show()

    def _end(self) -> None:
        self._view.need("audit")
        self._checks.stop()

    async def _look(self) -> None:
        self._show()

    def _show(self) -> None:
        last, running = self._checks.last, self._checks.running
        self._start.set_visibility(not running)
        self._deep.set_visibility(not running)
        self._stop.set_visibility(running)
        shown = str(_result(self._view, last))
        if self._result.content != shown:
            self._result.content = shown


def _result(view: View, check: Check | None) -> Markup:
    if check is None:
        return Markup('<p class="c-sub">{}</p>').format(view.say("audit.verify_never"))
    say = view.say
    if check.ended is None:
        word = say("audit.progress", done=cells.size(check.done), of=cells.size(check.of)) if check.of else ""
        bar = cells.bar(check.share, word)
        return Markup("<p>{}</p><p>{}</p>").format(say("audit.verifying", by=check.by), bar)
    end = cells.join(cells.when(view.language, check.ended), say("audit.verified_by", by=check.by))
    if check.result is None:
        key = "audit.stopped" if check.problem == "stopped" else "audit.failed"
        return _verdict("warn", "pause_circle", say(key, problem=check.problem), "", end)
    found = check.result
    if found.sound:
        counts = {name: f"{getattr(found, name):,}" for name in ("records", "segments", "checkpoints", "pruned")}
        return _verdict("good", "check_circle", say("audit.sound"), say("audit.sound_detail", **counts), end)
    first = found.findings[0]
    told = say("audit.first_break", where=first.where, problem=first.problem)
    heads = [Column(say("audit.where")), Column(say("audit.problem"), wide=True)]
    rows = [[cells.code(one.where), one.problem] for one in found.findings]
    more = Markup("<details><summary>{}</summary>{}</details>").format(
        say("audit.more_breaks"), parts.table_html(heads, rows)
    )
    return _verdict("bad", "gpp_bad", say("audit.broken"), told, end) + (more if len(rows) > 1 else Markup())


def _verdict(tone: str, icon: str, title: str, detail: str, end: Markup) -> Markup:
    return Markup(
        '<div class="c-verdict c-{}"><i class="material-icons" aria-hidden="true">{}</i><div><strong>{}</strong>'
        '<p>{}</p><p class="c-sub">{}</p></div></div>'
    ).format(tone, icon, title, detail, end)


def _change_heads(view: View) -> list[Column]:
    say = view.say
    return [
        Column(say("audit.time")),
        Column(say("audit.model")),
        Column(say("audit.change")),
        Column(say("audit.by"), phone=False),
        Column(say("audit.made_from"), wide=True, phone=False),
    ]


def _changes(view: View, offset: int, limit: int, words: str) -> Slice:
    found, total = changes(view.workspace, offset, limit, words)
    return Slice([_change_row(view, one) for one in found], total)


def _change_row(view: View, one: Change) -> list[object]:
    told = one.changed or one.inputs
    lines = [f"{key}: {value}" for key, value in told.items()]
    detail = one.detail
    if one.what == "version":
        detail = view.say("audit.changed_version", n=one.detail.removeprefix("version "))
    named = cells.link(view.href("models", one.digest or one.name), one.name)
    return [
        cells.when(view.language, one.time),
        Markup('<span class="c-nowrap">{}</span>').format(named),
        cells.badge(detail, "good" if one.detail.startswith("production:") else "plain"),
        cells.text(one.by or one.run),
        Markup('<span class="c-sub">{}</span>').format(cells.text("; ".join(lines), 240)) if lines else cells.NOTHING,
    ]
