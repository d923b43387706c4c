"""Releases under way, on the page of deployments: how far each is, what is watched, promote and roll back."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Literal

from markupsafe import Markup
from nicegui import ui

from catena.console import cells, parts
from catena.console.pages.release_form import Form
from catena.console.parts import Column
from catena.console.read.gateway import Snapshot, Watch, end_release
from catena.console.view import View
from catena.sdk import Release

Act = Literal["promote", "rollback"]
SIGNALS = ("errors", "first_token", "pace", "empty", "odd", "flagged", "liked")


class ReleaseCards:
    """A card for each release, and in `begin` the button that starts one.

    A card is drawn anew where another release began or its stage changed, else only its numbers.
    """

    def __init__(self, view: View, watch: Watch, begin: ui.element, after: Callable[[], Awaitable[None]]) -> None:
        self._view, self._watch, self._after = view, watch, after
        self._place = ui.element("div").classes("c-stackcards")
        self._key: object = None
        self._found: Snapshot | None = None
        with begin:
            word = view.say("deployments.start")
            self._begin = parts.button(word, self._start, main=True, icon="rocket_launch")
        self._begin.set_visibility(False)
        self._numbers: dict[str, ui.html] = {}

    def show(self, found: Snapshot) -> None:
        """Show the releases of a snapshot."""
        seen = self._view.may("releases") and found.may_release
        releases = found.releases if seen else ()
        key = (seen, [(one.model, _extra(one, "release"), one.phase) for one in releases])
        if key != self._key:
            self._key = key
            self._place.clear()
            self._numbers = {}
            with self._place:
                for one in releases:
                    self._card(one)
                if seen and not releases:
                    self._none()
        self._button_for(found, seen)
        for one in releases:
            content = str(_numbers(self._view, one))
            if self._numbers[one.model].content != content:
                self._numbers[one.model].content = content

    def _button_for(self, found: Snapshot, seen: bool) -> None:
        """Offer to start one where there is what could be released."""
        self._found = found
        self._begin.set_visibility(seen and bool(found.offer.models))

    async def _start(self) -> None:
        self._view.need("releases")
        if await Form.ask(self._view, self._latest):
            self._watch.stale()
            await self._after()

    def _latest(self) -> Snapshot:
        assert self._found is not None, "the button is seen with the first snapshot"
        return self._found

    def _none(self) -> None:
        view = self._view
        with parts.card():
            command = "catena release start MODEL CANDIDATE"
            told = view.say("deployments.release_none"), view.say("deployments.release_hint")
            parts.empty(Markup("{}<br>{}").format(*told), command)

    def _card(self, release: Release) -> None:
        view = self._view
        with parts.card().props('data-release=""'):
            with ui.element("div").classes("c-heading"):
                parts.html(Markup("<h2>{}</h2>").format(view.say("deployments.release", model=release.model)))
                with ui.element("div").classes("c-acts"):
                    if release.phase == "under way":
                        self._button(release, "promote")
                    self._button(release, "rollback")
            self._numbers[release.model] = parts.html("")

    def _button(self, release: Release, act: Act) -> None:
        main, tone = (True, "plain") if act == "promote" else (False, "bad")

        async def pressed() -> None:
            await self._do(release, act)

        parts.button(self._view.say(f"deployments.{act}"), pressed, main=main, tone=tone)  # type: ignore[arg-type]

    async def _do(self, release: Release, act: Act) -> None:
        view, words = self._view, {"model": release.model, "candidate": release.candidate}
        view.need("releases")
        reason = await ask_reason(view, act, words)
        if reason is None:
            return
        view.need("releases")
        try:
            told = await end_release(view.client, release, act, reason)
        finally:
            self._watch.stale()
        if told:
            parts.toast(view.say("deployments.quicker", told=told), tone="bad")
        else:
            parts.toast(view.say("deployments.promoted" if act == "promote" else "deployments.rolled_back", **words))
        await self._after()


async def ask_reason(view: View, act: Act, words: Mapping[str, str]) -> str | None:
    """Ask whether it shall be done, and why; None for no."""
    with ui.dialog() as dialog, ui.element("div").classes("c-dialog"):
        title, text = (view.say(f"deployments.{act}_{part}", **words) for part in ("title", "text"))
        parts.html(Markup("<h2>{}</h2><p>{}</p>").format(title, text))
        label = view.say("deployments.reason")
        reason = ui.input(placeholder=label).props(f'dense outlined maxlength=300 aria-label="{label}"')
        reason.on("keydown.enter", lambda: dialog.submit(reason.value or ""))
        with ui.element("div").classes("c-acts"):
            parts.button(view.say("parts.cancel"), lambda: dialog.submit(None))
            tone: cells.Tone = "plain" if act == "promote" else "bad"
            word = view.say(f"deployments.{act}")
            parts.button(word, lambda: dialog.submit(reason.value or ""), main=True, tone=tone)
    answer: str | None = await parts.answer_to(dialog)
    return answer


def _extra(release: Release, name: str, otherwise: Any = None) -> Any:
    return (release.model_extra or {}).get(name, otherwise)


def _numbers(view: View, release: Release) -> Markup:
    answers = _extra(release, "answers", {})
    steps, step = _extra(release, "steps", []), int(_extra(release, "step", 0))
    told = {name: f"{answers.get(name, 0):,}" for name in ("stable", "candidate")}
    place = view.say("deployments.steps", step=step + 1, of=len(steps)) if steps and release.mode != "shadow" else ""
    if release.phase == "baking":
        place = ""
    stage = release.phase.replace(" ", "_")
    facts = [
        (view.say("deployments.candidate"), cells.code(release.candidate)),
        (view.say("deployments.mode"), view.say(f"deployments.mode_{release.mode}")),
        (view.say("deployments.stage"), view.say(f"deployments.stage_{stage}")),
        (
            view.say("deployments.share"),
            cells.join(cells.bar(release.percent / 100, f"{release.percent:g} %"), Markup("<em>{}</em>").format(place)),
        ),
        (view.say("deployments.answers"), view.say("deployments.answers_of", **told)),
        (view.say("deployments.users"), f"{_extra(release, 'users', 0):,}"),
    ]
    one = Markup("<dt>{}</dt><dd>{}</dd>")
    shown = Markup("").join(one.format(name, value) for name, value in facts)
    return Markup('<dl class="c-facts">{}</dl>').format(shown) + _signals(view, release)


def _signals(view: View, release: Release) -> Markup:
    limit = float(_extra(release, "limit", 0.0)) or 6.9
    found: Mapping[str, Any] = _extra(release, "signals", {})
    heads = [
        Column(view.say("deployments.watch")),
        Column(view.say("deployments.old"), "right"),
        Column(view.say("deployments.new"), "right"),
        Column(view.say("deployments.evidence"), wide=True),
    ]
    rows = []
    for name in SIGNALS:
        if (one := found.get(name)) is None:
            continue
        share = max(0.0, float(one["log_evidence"])) / limit
        word = view.say("deployments.evidence_better" if name == "liked" else "deployments.back_at")
        colour = "c-good" if name == "liked" else "c-bad" if share >= 1 else "c-warn" if share > 0.3 else ""
        bar = Markup('<span class="{}" title="{}">{}</span>').format(colour, word, cells.bar(share))
        said = Markup('<span class="c-nowrap">{}</span>').format(view.say(f"deployments.signal_{name}"))
        rows.append([said, *(_share(view, one[arm]) for arm in ARMS), bar])
    return parts.table_html(heads, rows)


ARMS = ("stable", "candidate")


def _share(view: View, one: Mapping[str, Any]) -> Markup:
    if not one["of"]:
        return cells.NOTHING
    detail = view.say("deployments.of", yes=f"{one['yes']:,}", of=f"{one['of']:,}")
    return Markup('<span title="{}">{}</span>').format(detail, cells.percent(one["yes"] / one["of"]))
