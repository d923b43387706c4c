"""Playground: one model or two side by side, streamed from the gateway; opinions, and where an answer is from."""

from __future__ import annotations

import asyncio
from typing import Any

from nicegui import ui

from catena.console import parts
from catena.console.page import page
from catena.console.pages.answers import Side
from catena.console.read.gateway import trouble_of
from catena.console.view import View
from catena.core.errors import CatenaError
from catena.sdk import Model

MOST_PROMPT = 100_000
ECHO_S, ECHOES = 0.3, 10
"""How long, and how often, a browser is waited for that may still tell that its field was emptied."""


@page(name="playground", path="/playground", icon="forum", action="infer")
async def playground(view: View) -> None:
    """Draw the playground."""
    with parts.heading(view.say("playground.title"), view.say("playground.lead")):
        acts = ui.element("div").classes("c-acts")
    if view.gateway is None:
        _nothing(view, "playground.none", "catena up deploy.yaml", view.say("playground.none_hint"))
        return
    try:
        async with view.client() as catena:
            models = await catena.models()
    except CatenaError as error:
        parts.trouble(view.say(f"playground.{trouble_of(error)}"), error.message)
        return
    if not models:
        _nothing(view, "playground.no_models", "", "")
        return
    Talk(view, models).draw(acts)


def _nothing(view: View, key: str, command: str, hint: str) -> None:
    with parts.card():
        parts.empty(view.say(key), command, hint)


class Talk:
    """The conversation: what is asked goes to every side that has a model."""

    def __init__(self, view: View, models: list[Model]) -> None:
        self._view = view
        self._models = {one.id: one.digest or "" for one in models}
        self._tasks: list[asyncio.Task[bool]] = []

    def draw(self, acts: ui.element) -> None:
        """Draw settings, both sides, and the message field below them."""
        view, names = self._view, list(self._models)
        with acts:
            parts.button(view.say("playground.clear"), self._clear, icon="add_comment")
        self._settings()
        with ui.element("div").classes("c-talks"):
            asked = view.query.get("model", "")
            first = asked if asked in names else names[0]
            other = view.query.get("second", "")
            self._sides = [
                Side(view, self._models, first, view.say("playground.model"), self._options),
                Side(view, self._models, other if other in names else "", view.say("playground.second"), self._options),
            ]
        with ui.element("div").classes("c-ask"):
            label = view.say("playground.message")
            self._prompt = ui.textarea(placeholder=label).props(
                f'outlined autogrow dense maxlength={MOST_PROMPT} aria-label="{label}"'
            )
            self._prompt.on("keydown.enter.exact.prevent", self._send)
            with ui.element("div").classes("c-acts"):
                self._go = parts.button(view.say("playground.send"), self._send, main=True, icon="send")
                self._halt = parts.button(view.say("playground.stop"), self._stop, icon="stop")
                parts.html(view.say("playground.keys")).classes("c-sub")
        self._busy(False)
        ui.context.client.on_delete(self._stop)

    def _settings(self) -> None:
        view = self._view
        with ui.expansion(view.say("playground.settings"), icon="tune").classes("c-card c-fold"):
            with ui.element("div").classes("c-form"):
                self._temperature = self._number("temperature", 0.7, 0.0, 2.0, 0.1)
                self._top_p = self._number("top_p", 1.0, 0.01, 1.0, 0.05)
                self._most = self._number("max_tokens", 256, 1, 100_000, 1)
                self._seed = self._number("seed", None, 0, 2**31, 1)
            label = view.say("playground.system")
            self._system = ui.textarea(label=label).props("outlined autogrow dense").classes("c-wide")
            self._consent = ui.checkbox(view.say("playground.consent")).props("dense")

    def _number(self, name: str, value: float | None, least: float, most: float, step: float) -> ui.number:
        label = self._view.say(f"playground.{name}")
        return ui.number(label, value=value, min=least, max=most, step=step).props("outlined dense")

    def _options(self) -> tuple[str, dict[str, Any], bool]:
        """Return the system prompt, sampling parameters, and whether opinions may be learnt from."""
        values = {"temperature": self._temperature.value, "top_p": self._top_p.value}
        params: dict[str, Any] = {name: float(value) for name, value in values.items() if value is not None}
        whole = {"max_tokens": self._most.value, "seed": self._seed.value}
        params |= {name: int(value) for name, value in whole.items() if value is not None}
        return str(self._system.value or "").strip(), params, bool(self._consent.value)

    async def _send(self) -> None:
        text = str(self._prompt.value or "").strip()
        if not text or self._tasks:
            return
        self._view.need("infer")
        self._prompt.set_value("")
        self._busy(True)
        self._tasks = [asyncio.create_task(side.ask(text)) for side in self._sides if side.model]
        try:
            came = await asyncio.gather(*self._tasks, return_exceptions=True)
        finally:
            self._tasks = []
            self._busy(False)
        for one in came:
            if isinstance(one, Exception):
                raise one
        if not any(one is True for one in came):
            await self._give_back(text)

    async def _give_back(self, text: str) -> None:
        """Put what nobody took back into the field, where nothing newer is in it.

        A field that was emptied from here tells so a moment later, as if the person had emptied it: what was put into
        it before that came is lost, and put there again.
        """
        for _ in range(ECHOES):
            if self._prompt.value:
                return
            self._prompt.set_value(text)
            await asyncio.sleep(ECHO_S)

    def _stop(self) -> None:
        for side in self._sides:
            side.stop()

    def _clear(self) -> None:
        self._stop()
        for side in self._sides:
            side.clear()

    def _busy(self, busy: bool) -> None:
        self._go.set_visibility(not busy)
        self._halt.set_visibility(busy)
