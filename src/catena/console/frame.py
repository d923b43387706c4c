"""The frame around every page: menu, language, light and dark, who is signed in; what is shown when a page fails."""

from __future__ import annotations

import copy
import logging
from collections.abc import Awaitable, Callable
from typing import cast

from fastapi import Request
from markupsafe import Markup
from nicegui import Client, ui

from catena.console import parts
from catena.console.guard import VISIT, Visit
from catena.console.language import NAMES, preferred
from catena.console.login_form import DARK_COOKIE, LANGUAGE_COOKIE
from catena.console.page import Page, pages
from catena.console.view import Console, View
from catena.core.errors import CatenaError
from catena.core.language import LANGUAGES
from catena.govern.access import Denied

logger = logging.getLogger(__name__)
DARK = {"auto": None, "light": False, "dark": True}
DARK_ICONS = {"auto": "brightness_auto", "light": "light_mode", "dark": "dark_mode"}
WATCH_S = 5.0
"""How often a page asks whether its session still holds, in seconds."""


def framed(console: Console, page: Page) -> Callable[[Request], Awaitable[None]]:
    """Return what draws a page inside the frame."""

    async def drawn(request: Request) -> None:
        view = view_of(console, request)
        _prepare(view, page.name)
        with _around(view, page.name) as main:
            await _draw(view, page, main)
        ui.timer(WATCH_S, lambda: _watch(view))

    return drawn


def not_found(console: Console) -> Callable[[Request], Awaitable[None]]:
    """Return what draws the page for every path that is none."""

    async def drawn(request: Request) -> None:
        view = view_of(console, request)
        _prepare(view, "frame")
        ui.context.client.status_code = 404
        with _around(view, ""):
            parts.trouble(view.say("frame.not_found"), view.say("frame.not_found_hint"), title=True)
            ui.html(parts.link_button(view, view.say("frame.home")), sanitize=False)

    return drawn


def view_of(console: Console, request: Request) -> View:
    """Return the view of a request that the guard let in."""
    visit = cast("Visit", request.scope[VISIT])
    language = preferred(request.cookies.get(LANGUAGE_COOKIE, ""), request.headers.get("accept-language", ""))
    dark = DARK.get(request.cookies.get(DARK_COOKIE, "auto"))
    return View(console, visit.token, language, dark, dict(request.path_params), dict(request.query_params))


async def _draw(view: View, page: Page, main: ui.element) -> None:
    """Draw the page, or in its place what kept it from being drawn.

    Nothing that a page may not show is read before the check.
    """
    try:
        view.need(page.action)
        await page.build(view)
    except CatenaError as error:
        ui.context.client.status_code = error.http_status
        main.clear()
        parts.trouble(error.message, error.hint, title=True)
    except Exception as error:
        logger.exception("the page %s failed", page.path)
        ui.context.client.status_code = 500
        main.clear()
        parts.trouble(view.say("frame.unexpected", error=type(error).__name__), "", title=True)


def _watch(view: View) -> None:
    """Leave a page whose session has ended meanwhile."""
    try:
        _ = view.person
    except Denied:
        ui.navigate.to("/login")


def _prepare(view: View, name: str) -> None:
    """Set what the answer's head says: language, colours, title; and who hears of errors in later events."""
    client = ui.context.client
    client.page = copy.copy(client.page)
    client.page.language = "zh-CN" if view.language == "zh" else "en-US"
    client.page.dark = view.dark
    title = view.say(f"{name}.title") if name != "frame" else view.say("frame.not_found")
    ui.page_title(f"{title} · Catena")
    dark = "html{background:#11161b}"
    early = dark if view.dark else f"@media (prefers-color-scheme: dark){{{dark}}}" if view.dark is None else ""
    ui.add_head_html(f"<style>{early}</style>")
    client.on_exception(lambda error: tell(view, error))


def tell(view: View, error: Exception) -> None:
    """Show an error of something that was done on a page that is already there."""
    if isinstance(error, CatenaError):
        message, hint = error.message, error.hint
    else:
        logger.error("an act on a page failed", exc_info=error)
        message, hint = view.say("frame.unexpected", error=type(error).__name__), ""
    parts.toast(message, hint, tone="bad")


def _around(view: View, lit: str) -> ui.element:
    """Draw header and menu, and return the element that the page goes into."""
    person = view.person
    _one_landmark(ui.context.client)
    with ui.element("header").classes("c-top"):
        ui.html(_head(view, person.subject, person.role), sanitize=False, tag="div").classes("c-toprow")
    ui.html(_menu(view, lit), sanitize=False, tag="nav").classes("c-menu").props('id="menu"')
    main = ui.element("main").classes("c-main").props('id="content" tabindex="-1"')
    with main:
        if view.local and lit == "overview":
            ui.html(Markup('<p class="c-note">{}</p>').format(view.say("frame.local")), sanitize=False)
    return main


def _one_landmark(client: Client) -> None:
    """Make NiceGUI's own page a plain box: it is a `main`, and ours, without header and menu, would stand within it."""
    for page in client.page_container.default_slot.children:
        assert page.tag == "q-page", page.tag
        page.tag = "div"


def _head(view: View, subject: str, role: str) -> Markup:
    chosen = {None: "auto", False: "light", True: "dark"}[view.dark]
    after = list(DARK)[(list(DARK).index(chosen) + 1) % len(DARK)]
    other = next(language for language in LANGUAGES if language != view.language)
    cookie = Markup("document.cookie='{}={};path={};max-age=31536000;samesite=strict';location.reload()")
    place = view.console.prefix or "/"
    out = Markup(
        '<form method="post" action="{}/logout"><button class="c-icon" title="{}" aria-label="{}">'
        '<i class="material-icons">logout</i></button></form>'
    ).format(view.console.prefix, view.say("frame.sign_out"), view.say("frame.sign_out"))
    appearance = f"{view.say('frame.appearance')}: {view.say(f'frame.dark_{chosen}')}"
    return Markup(
        '<a class="c-skip" href="#content">{}</a>'
        '<button class="c-icon c-burger" aria-label="{}" aria-controls="menu" onclick="document.body.classList.'
        'toggle(\'c-open\')"><i class="material-icons">menu</i></button>'
        '<a class="c-brand" href="{}"><span class="c-mark" aria-hidden="true"></span>Catena</a>'
        '<span class="c-who" title="{}"><i class="material-icons">person_outline</i><span>{}</span></span>'
        '<button class="c-icon c-lang" onclick="{}" lang="{}" title="{}">{}</button>'
        '<button class="c-icon" onclick="{}" title="{}" aria-label="{}"><i class="material-icons">{}</i></button>{}'
    ).format(
        view.say("frame.skip"),
        view.say("frame.menu"),
        view.href(),
        view.say("frame.local") if view.local else view.say("frame.signed_in", subject=subject, role=role),
        subject,
        cookie.format(LANGUAGE_COOKIE, other, place),
        "zh-CN" if other == "zh" else "en",
        view.say("frame.language"),
        NAMES[other] if other == "zh" else "EN",
        cookie.format(DARK_COOKIE, after, place),
        appearance,
        appearance,
        DARK_ICONS[chosen],
        "" if view.local else out,
    )


def _menu(view: View, lit: str) -> Markup:
    """Return the menu: the pages that this person may see."""
    entry = Markup('<a href="{}"{}><i class="material-icons" aria-hidden="true">{}</i><span>{}</span></a>')
    shown = [page for page in pages() if page.menu and view.may(page.action)]
    here = Markup(' aria-current="page"')
    return Markup("").join(
        entry.format(view.href(page.path.strip("/")), here if page.name == lit else "", page.icon, title)
        for page in shown
        for title in [view.say(f"{page.name}.title")]
    )
