"""One side of the playground: a model, its conversation, an answer as it is written, and what one may do with it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Literal

from markupsafe import Markup
from nicegui import ui

from catena.console import cells, parts
from catena.console.read.gateway import trouble_of
from catena.console.read.production import sources
from catena.console.view import View
from catena.core.errors import CatenaError, NotFound
from catena.hub.attribution import AnswerSource
from catena.sdk import ApiError, ChatPiece

EVERY_S = 0.05
"""Pieces of an answer are shown together that often."""
Options = Callable[[], tuple[str, dict[str, Any], bool]]


@dataclass
class Answer:
    """An answer, and how it came."""

    text: str = ""
    end: str = ""
    """stop, length, content_filter; stopped (by the person), cut (the stream broke off)."""
    id: str = ""
    request_id: str = ""
    tokens: int = 0
    pieces: int = 0
    first_s: float | None = None
    seconds: float = 0.0
    problem: CatenaError | None = None


class Side:
    """A model and the conversation with it."""

    def __init__(self, view: View, models: Mapping[str, str], model: str, label: str, options: Options) -> None:
        self._view, self._digests, self._options = view, models, options
        self._turns: list[tuple[str, str]] = []
        self._stopped = asyncio.Event()
        with ui.element("section").classes("c-card c-talkside") as self._card:
            names = {"": view.say("playground.nobody")} | {name: name for name in models}
            if model:
                del names[""]
            self._choice = ui.select(names, value=model, label=label).props("outlined dense options-dense")
            self._choice.on_value_change(self._chosen)
            self._talk = ui.element("div").classes("c-talk").props('aria-live="polite" tabindex="0"')
        self.clear()

    @property
    def model(self) -> str:
        """The model that is chosen; empty for none."""
        return str(self._choice.value or "")

    def clear(self) -> None:
        """Begin a new conversation."""
        self._turns = []
        self._talk.clear()
        with self._talk:
            parts.empty(self._view.say("playground.start")).set_visibility(bool(self.model))
        self._card.classes(remove="c-unused") if self.model else self._card.classes("c-unused")

    def stop(self) -> None:
        """End the answer that is being written."""
        self._stopped.set()

    def _chosen(self) -> None:
        self.stop()
        self.clear()

    async def ask(self, text: str) -> bool:
        """Ask, and show the answer as it comes; tells whether the model took the question."""
        system, params, consent = self._options()
        turns, model = self._turns, self.model
        if not turns:
            self._talk.clear()
        with self._talk:
            asked = parts.html(Markup('<div class="c-asked" dir="auto">{}</div>').format(text))
            shown = parts.html("").classes("c-answer")
        self._scroll()
        messages = [{"role": "system", "content": system}] if system else []
        messages += [{"role": role, "content": said} for role, said in (*turns, ("user", text))]
        answer = await self._write(model, messages, params, shown)
        if turns is not self._turns:
            return True  # a new conversation was begun meanwhile: this is no part of it
        shown.content = str(self._answer_html(answer))
        if answer.problem is not None and not answer.text:
            asked.classes("c-refused")
            self._scroll()
            return False
        turns += [("user", text), ("assistant", answer.text)]
        with self._talk:
            self._acts(answer, consent, self._digests.get(model, ""))
        self._scroll()
        return True

    async def _write(
        self, model: str, messages: list[dict[str, str]], params: dict[str, Any], shown: ui.html
    ) -> Answer:
        """Stream an answer into its place; what goes wrong stands in it."""
        answer, began, drawn = Answer(), time.monotonic(), 0.0
        self._stopped.clear()
        shown.content = str(self._answer_html(answer, writing=True))
        stopped = asyncio.create_task(self._stopped.wait())
        try:
            async with self._view.client() as catena:
                stream = catena.chat(model, messages, **params, stream_options={"include_usage": True})
                async with aclosing(stream):  # type: ignore[type-var]  # an asynchronous generator
                    while (piece := await _next(stream, stopped)) is not None:
                        _take(answer, piece, time.monotonic() - began)
                        if time.monotonic() - drawn > EVERY_S:
                            drawn = time.monotonic()
                            shown.content = str(self._answer_html(answer, writing=True))
                            self._scroll()
            if self._stopped.is_set():
                answer.end = "stopped"
        except CatenaError as error:
            answer.problem = error
            answer.end = "cut" if answer.text else answer.end
        finally:
            stopped.cancel()
        answer.seconds = time.monotonic() - began
        return answer

    def _answer_html(self, answer: Answer, *, writing: bool = False) -> Markup:
        view, body = self._view, Markup()
        if answer.text or answer.problem is None:
            caret = Markup('<span class="c-caret" aria-hidden="true"></span>') if writing else ""
            body = Markup('<div class="c-prose" dir="auto">{}{}</div>').format(answer.text, caret)
        if answer.problem is not None:
            told = view.say(f"playground.{trouble_of(answer.problem)}")
            icon = Markup('<i class="material-icons" aria-hidden="true">error_outline</i>')
            inside = Markup("{}<div><strong>{}</strong><p>{}</p></div>").format(icon, told, answer.problem.message)
            body += Markup('<div class="c-trouble" role="alert">{}</div>').format(inside)
        return body

    def _acts(self, answer: Answer, consent: bool, digest: str) -> None:
        view = self._view
        with ui.element("div").classes("c-answeracts"):
            opinion = Opinion(view, answer, consent)
            opinion.draw()
            if view.may("data"):

                async def where_from() -> None:
                    await show_sources(view, digest, answer.text)

                parts.icon_button("account_tree", view.say("playground.source"), where_from)
            parts.html(self._numbers(answer)).classes("c-sub")

    def _numbers(self, answer: Answer) -> Markup:
        say, count = self._view.say, answer.tokens or answer.pieces
        key = "playground.tokens" if answer.tokens else "playground.pieces"
        told = [say(key, n=f"{count:,}", time=cells.duration(self._view.language, answer.seconds))]
        writing = answer.seconds - (answer.first_s or 0.0)
        if count > 1 and writing > 0:
            told.append(say("playground.rate", n=cells.number((count - 1) / writing, 3)))
        if answer.first_s is not None:
            told.append(say("playground.first", time=cells.duration(self._view.language, answer.first_s)))
        shown = Markup("{}").format(" · ".join(told))
        if answer.end in ("length", "content_filter", "stopped", "cut"):
            tone: cells.Tone = "warn" if answer.end != "stopped" else "plain"
            shown = cells.badge(say(f"playground.end_{answer.end}"), tone) + Markup(" ") + shown
        return shown

    def _scroll(self) -> None:
        self._talk.client.run_javascript(
            f"const talk = getHtmlElement({self._talk.id}); talk.scrollTop = talk.scrollHeight"
        )


async def _next(stream: Any, stopped: asyncio.Task[Any]) -> ChatPiece | None:
    """Return the next piece; None at the end, and as soon as the person stops it."""
    piece = asyncio.ensure_future(anext(stream, None))
    await asyncio.wait({piece, stopped}, return_when=asyncio.FIRST_COMPLETED)
    if piece.done():
        found: ChatPiece | None = piece.result()
        return found
    piece.cancel()
    await asyncio.wait({piece})
    return None


def _take(answer: Answer, piece: ChatPiece, seconds: float) -> None:
    answer.text += piece.text
    answer.id, answer.request_id = piece.id or answer.id, piece.request_id or answer.request_id
    answer.end, answer.tokens = piece.finish or answer.end, piece.answer_tokens or answer.tokens
    if piece.text:
        answer.pieces += 1
        answer.first_s = seconds if answer.first_s is None else answer.first_s


class Opinion:
    """Thumbs and a correction for one answer."""

    def __init__(self, view: View, answer: Answer, consent: bool) -> None:
        self._view, self._answer, self._consent = view, answer, consent
        self._correction = ""

    def draw(self) -> None:
        """Draw the buttons."""
        say = self._view.say
        self._up = parts.icon_button("thumb_up", say("playground.up"), lambda: self._rate("up"))
        self._down = parts.icon_button("thumb_down", say("playground.down"), lambda: self._rate("down"))
        parts.icon_button("edit_note", say("playground.correct"), self._correct)

    async def _rate(self, rating: Literal["up", "down"], correction: str = "") -> None:
        view, answer = self._view, self._answer
        view.need("feedback")
        try:
            async with view.client() as catena:
                await catena.feedback(
                    rating,
                    consent=self._consent,
                    request_id=answer.request_id or None,
                    response_id=None if answer.request_id else answer.id,
                    correction=correction or None,
                )
        except ApiError as error:
            if error.status != 404:
                raise
            hint = view.say("playground.no_feedback_hint")
            raise NotFound(view.say("playground.no_feedback"), hint=hint) from error
        for button, word in ((self._up, "up"), (self._down, "down")):
            button.classes("c-chosen") if word == rating else button.classes(remove="c-chosen")
            button.props(f'aria-pressed="{"true" if word == rating else "false"}"')
        parts.toast(view.say("playground.thanks"))

    async def _correct(self) -> None:
        view = self._view
        with ui.dialog() as dialog, ui.element("div").classes("c-dialog c-widedialog"):
            title, text = view.say("playground.correction_title"), view.say("playground.correction_text")
            parts.html(Markup("<h2>{}</h2><p>{}</p>").format(title, text))
            field = ui.textarea(value=self._correction or self._answer.text)
            field.props(f'outlined autogrow dense aria-label="{title}"').classes("c-wide")
            with ui.element("div").classes("c-acts"):
                parts.button(view.say("parts.cancel"), lambda: dialog.submit(None))
                parts.button(view.say("playground.save"), lambda: dialog.submit(field.value), main=True)
        told = await parts.answer_to(dialog)
        if told is not None and told.strip():
            self._correction = told
            await self._rate("down", told)


async def show_sources(view: View, digest: str, answer: str) -> None:
    """Show from which training samples an answer can have been learnt."""
    view.need("data")
    try:
        found: list[AnswerSource] | None = await parts.read(sources, view.workspace, digest, answer) if digest else None
    except NotFound:
        found = None
    with ui.dialog() as dialog, ui.element("div").classes("c-dialog c-widedialog"):
        parts.html(Markup("<h2>{}</h2>").format(view.say("playground.sources")))
        if not found:
            key = "playground.sources_unknown" if found is None else "playground.sources_none"
            parts.html(Markup('<p class="c-empty">{}</p>').format(view.say(key)))
        for one in found or ():
            parts.html(_source(view, one)).classes("c-source")
        with ui.element("div").classes("c-acts"):
            parts.button(view.say("playground.close"), lambda: dialog.submit(None), main=True)
    await parts.answer_to(dialog)


def _source(view: View, one: AnswerSource) -> Markup:
    say = view.say
    share = say("playground.same") if one.similarity == 1 else say("playground.near", share=f"{one.similarity:.0%}")
    facts = [
        (say("playground.question"), cells.text(one.question, 600)),
        (say("playground.answer"), cells.text(one.answer, 600)),
        (say("playground.page"), cells.text(one.page, 300)),
        (say("playground.sample"), cells.link(view.href("datasets", one.dataset), one.sample_id)),
    ]
    shown = Markup("").join(Markup("<dt>{}</dt><dd>{}</dd>").format(name, value) for name, value in facts if value)
    return Markup('<p>{}</p><dl class="c-facts">{}</dl>').format(cells.badge(share, "good"), shown)
