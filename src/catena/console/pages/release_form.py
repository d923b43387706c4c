"""The form that starts a release: which model, which candidate, how, and for how many users at first.

What is missing or cannot be is said beside the form, which stays as it was filled in; the gateway has the last word.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from markupsafe import Markup
from nicegui import ui

from catena.console import parts
from catena.console.read.gateway import Snapshot, start_release
from catena.console.read.production import candidates, digest_of
from catena.console.view import View
from catena.core.errors import CatenaError
from catena.sdk import ApiError, Release
from catena.serve.releases.plan import ReleaseConfig

MODES = ("canary", "ab", "shadow")
SUGGESTED = 6
"""Candidates that stand below their field; all are completed while one types."""
STEPS = ReleaseConfig().steps
"""Percent of users, if nobody says anything else."""


class Form:
    """A dialog; `sent` says whether a release was started by it."""

    def __init__(self, view: View, latest: Callable[[], Snapshot], models: dict[str, list[str]]) -> None:
        """`models` are those that this person may release, each with its possible candidates, likely ones first."""
        self._view, self._latest, self._models = view, latest, models
        self.sent = self._busy = False
        say = view.say
        with ui.dialog() as self.dialog, ui.element("div").classes("c-dialog c-formdialog"):
            title = Markup("<h2>{}</h2><p>{}</p>").format(say("deployments.start"), say("deployments.start_lead"))
            parts.html(title)
            first = next((name for name in models if name not in self._under_way()), next(iter(models)))
            self._model = ui.select(list(models), value=first, label=say("deployments.model"), on_change=self._suggest)
            self._model.props("dense outlined options-dense")
            with ui.element("div").classes("c-stack"):
                self._candidate = ui.input(say("deployments.candidate")).props("dense outlined maxlength=200 autofocus")
                self._candidate.on("keydown.enter", self._send)
                self._chips = ui.element("div").classes("c-chips")
            kinds = {mode: say(f"deployments.mode_{mode}") for mode in MODES}
            with ui.element("fieldset").classes("c-kinds"):
                parts.html(say("deployments.mode"), tag="legend")
                self._mode = ui.radio(kinds, value=MODES[0], on_change=self._explain).props("dense")
            self._share: Any = ui.number(
                say("deployments.first_share"), value=STEPS[0], min=0, max=100, suffix="%", on_change=self._explain
            ).props("dense outlined inputmode=decimal")
            self._plan = parts.html("").classes("c-sub")
            self._wrong = parts.html("").props('role="alert"')
            with ui.element("div").classes("c-acts"):
                parts.button(say("parts.cancel"), self.dialog.close)
                self._go = parts.button(say("deployments.start_go"), self._send, main=True)
        self._suggest()
        self._explain()

    @classmethod
    async def ask(cls, view: View, latest: Callable[[], Snapshot]) -> bool:
        """Show the form until a release is started by it, or it is closed; tells whether one was.

        `latest` returns how the gateway stood last.
        """
        person, offer = view.person, latest().offer
        mine = {name: served for name, served in offer.models.items() if person.may_use(name)}
        if not mine:
            parts.toast(view.say("deployments.no_model"), tone="warn")
            return False
        stored = await parts.read(_stored, view, mine)
        form = cls(view, latest, {name: [*offer.candidates, *stored[name]] for name in mine})
        await parts.answer_to(form.dialog)
        return form.sent

    def _under_way(self) -> dict[str, Release]:
        return {one.model: one for one in self._latest().releases}

    def _suggest(self) -> None:
        """Offer the candidates of the chosen model."""
        known = self._models[self._model.value]
        self._candidate.set_autocomplete(known)
        self._chips.clear()
        with self._chips:
            for ref in known[:SUGGESTED]:
                chip = ui.button(ref, on_click=lambda ref=ref: self._candidate.set_value(ref), color=None)
                chip.props("no-caps unelevated dense").classes("c-chip")

    def _explain(self) -> None:
        """Say what will happen."""
        mode, steps = self._mode.value, self._steps()
        self._share.set_visibility(mode != "shadow")
        told = ""
        if mode == "shadow":
            told = self._view.say("deployments.plan_shadow")
        elif steps:
            words = {"first": f"{steps[0]:g}", "then": " → ".join(f"{step:g} %" for step in [*steps[1:], 100.0])}
            told = self._view.say(f"deployments.plan_{mode}", **words)
        self._plan.content = str(Markup("<p>{}</p>").format(told)) if told else ""

    def _steps(self) -> list[float]:
        """Return the shares of users one after the other; none where the first is no share."""
        first = self._share.value
        if not isinstance(first, int | float) or not 0 < first < 100:
            return []
        return [float(first), *(step for step in STEPS if step > first)]

    async def _missing(self, model: str, candidate: str) -> str:
        """Return what keeps the form from being sent, and what to do; empty for nothing."""
        words, view = {"model": model, "candidate": candidate}, self._view
        if not candidate:
            return view.say("deployments.needs_candidate")
        if (other := self._under_way().get(model)) is not None:
            words["candidate"] = other.candidate
            return view.say(f"deployments.is_{'baking' if other.phase == 'baking' else 'under_way'}", **words)
        served = self._latest().offer.models.get(model, "")
        digests = [await parts.read(digest_of, view.workspace, ref) for ref in (served, candidate)]
        if digests[0] and digests[0] == digests[1]:
            return view.say("deployments.is_served", **words)
        if self._mode.value != "shadow" and not self._steps():
            return view.say("deployments.needs_share")
        return ""

    async def _send(self) -> None:
        if self._busy:
            return
        self._busy = True
        self.dialog.props("persistent")
        self._go.props("loading")
        try:
            model, candidate = self._model.value, (self._candidate.value or "").strip()
            self._view.need("releases")
            told = await self._missing(model, candidate) or await self._start(model, candidate)
        except CatenaError as error:
            told = error.message if isinstance(error, ApiError) else f"{error.message}. {error.hint}"
        finally:
            self._busy = False
        if self.dialog.is_deleted:
            return  # who asked has gone away meanwhile
        self._go.props(remove="loading")
        self.dialog.props(remove="persistent")
        if told:
            icon = Markup('<i class="material-icons" aria-hidden="true">error_outline</i>')
            inside = Markup('<div class="c-trouble">{}<div>{}</div></div>')
            self._wrong.content = str(inside.format(icon, told))
            return
        self.sent = True
        parts.toast(self._view.say("deployments.started", model=model, candidate=candidate))
        self.dialog.close()

    async def _start(self, model: str, candidate: str) -> str:
        """Ask the gateway; returns nothing, or why somebody else was quicker."""
        settings: dict[str, Any] = {"mode": self._mode.value}
        settings |= {"steps": self._steps()} if self._mode.value != "shadow" else {}
        told = await start_release(self._view.client, model, candidate, settings)
        return self._view.say("deployments.was_quicker", told=told) if told else ""


def _stored(view: View, models: dict[str, str]) -> dict[str, list[str]]:
    """Return what each model could be released with from the store; nothing where it is served from elsewhere."""
    known = {served: candidates(view.workspace, served) for served in set(models.values()) if served}
    return {name: known.get(served, []) for name, served in models.items()}
