"""Versions of a model and their tags: putting one on a version, or taking it away, by who may release."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from nicegui import ui

from catena.console import cells, parts
from catena.console.parts import Column
from catena.console.read.models import ModelBook, ModelView
from catena.console.view import View
from catena.core.errors import CatenaError
from catena.govern.roles import Action

ACTION: Action = "releases"


async def tags(view: View, book: ModelBook, found: ModelView) -> None:
    """Show the versions of a model's name, and what changes their tags."""
    heads = [
        Column(view.say("models.version")),
        Column(view.say("models.tags"), wide=True),
        Column("SHA-256", phone=False),
        Column(view.say("models.changed"), "right"),
    ]
    rows = [
        [
            cells.link(view.href("models", f"{found.name}@{one.version}", tab="tags"), f"@{one.version}"),
            cells.join(*(cells.badge(tag, "good") for tag in one.tags)) if one.tags else cells.NOTHING,
            cells.digest(one.digest),
            cells.when(view.language, one.created),
        ]
        for one in found.versions
    ]
    with parts.card(view.say("models.tab_tags"), view.say("models.tags_lead")):
        parts.table(heads, rows) if rows else parts.empty(view.say("models.no_versions"))
    if not rows or not view.may(ACTION):
        return
    with parts.card(view.say("models.tag_this", ref=found.ref), view.say("models.tag_hint")):
        with ui.element("div").classes("c-tools"):
            _put(view, book, found)
        if found.tags:
            with ui.element("div").classes("c-tools"):
                for tag in found.tags:
                    parts.button(view.say("models.untag", tag=tag), _away(view, book, found, tag), tone="bad")


def _seen(found: ModelView) -> dict[str, str]:
    """Return where each tag stood when the page was drawn."""
    return {tag: one.digest for one in found.versions for tag in one.tags}


def _put(view: View, book: ModelBook, found: ModelView) -> None:
    known = sorted({*_seen(found), "production", "staging"})
    box: Any = ui.input(view.say("models.tag"), autocomplete=known).props("dense outlined").classes("c-search")

    async def put() -> None:
        view.need(ACTION)
        tag = (box.value or "").strip()
        if not tag:
            parts.toast(view.say("models.tag_missing"), tone="warn")
            return
        before = _seen(found).get(tag)
        if before is not None and before != found.model.digest:
            text = view.say("models.move_text", tag=tag, ref=found.ref, digest=before[:12])
            if not await parts.confirm(view, view.say("models.move", tag=tag), text, view.say("models.put_tag")):
                return
        await _done(view, lambda: book.tag(found.ref, tag, before, by=view.person.subject), found.ref)

    parts.button(view.say("models.put_tag"), put, main=True)


def _away(view: View, book: ModelBook, found: ModelView, tag: str) -> Callable[[], Awaitable[None]]:
    async def taken() -> None:
        view.need(ACTION)
        title, text = view.say("models.untag", tag=tag), view.say("models.untag_text", ref=found.ref)
        if await parts.confirm(view, title, text, title, tone="bad"):
            digest = found.model.digest
            await _done(view, lambda: book.untag(found.name, tag, digest, by=view.person.subject), found.ref)

    return taken


async def _done(view: View, act: Callable[[], None], ref: str) -> None:
    """Do it, and draw the page anew; what somebody else did meanwhile is told and nothing is overwritten."""
    view.need(ACTION)  # again: a dialog may have stood open for long
    try:
        await parts.read(act)
    except CatenaError as error:
        parts.toast(error.message, error.hint, tone="bad")
        return
    ui.navigate.to(view.path("models", ref, tab="tags"))
