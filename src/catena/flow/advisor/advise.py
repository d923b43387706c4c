"""`advise`: from a task and a machine to a model, a format, a way to share it, a speed and a cost.

    task -> class of model -> models that know the languages -> how each is served and trained there -> the largest that
    reaches all that is asked

The rule is simple and is said with the answer: among models of one class the one with the most parameters, in the most
exact format that fits. A larger model in 4 bits answers better than one of half its size in 16 (arXiv 2212.09720). How
good a model is at a task is not known from its size: `catena evaluate` measures it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from catena.core.config import parse
from catena.core.errors import NotFound, UsageError, did_you_mean
from catena.flow.advisor.machine import gpus_of, this_processor
from catena.flow.advisor.need import Need, parse_budget, parse_seconds
from catena.flow.advisor.serving import Lengths, Machine, Serving, lengths_of, servings
from catena.flow.advisor.tables import ANY_LANGUAGE, OpenModel, TaskKind, find, gpus as known_gpus, models, tasks
from catena.flow.advisor.training import Training, trainings

MORE_GPUS = (2, 4, 8, 16)
LANGUAGES = {"chinese": "zh", "english": "en", "german": "de", "french": "fr", "japanese": "ja", "korean": "ko"}
RULE = "the largest model of the class that reaches all that is asked, in the most exact format that does"


@dataclass(frozen=True)
class Candidate:
    """A model, and the best way to serve and to train it there."""

    name: str
    model: OpenModel
    lengths: Lengths
    serving: Serving
    training: Training | None

    @property
    def problems(self) -> tuple[str, ...]:
        """What it does not reach; nothing: it fits."""
        return (*self.serving.problems, *(self.training.problems if self.training else ()))

    @property
    def excess(self) -> float:
        """How many times too much it is, at worst."""
        return max(self.serving.excess, self.training.excess if self.training else 0.0)

    def record(self) -> dict[str, Any]:
        """Return it with plain names."""
        about = self.model.model_dump(mode="json", include={"kind", "parameters", "licence", "languages", "source"})
        return {
            "model": self.name,
            **about,
            "prompt": self.lengths.prompt,
            "new": self.lengths.new,
            "serving": self.serving.record(),
            "training": self.training.record() if self.training else None,
            "problems": list(self.problems),
        }


@dataclass(frozen=True)
class Advice:
    """What was advised, and everything that was looked at."""

    need: Need
    task: TaskKind
    machine: Machine
    choice: Candidate | None
    """None where nothing fits; then `nearest` is what comes nearest."""
    nearest: Candidate | None
    would: str
    """What the nearest would fit on, where something is known."""
    candidates: Sequence[Candidate]
    """The largest first."""

    @property
    def why(self) -> str:
        """The reason, in sentences."""
        count = f"{self.machine.count} x " if self.machine.count > 1 else ""
        where = f"on {count}{self.machine.gpu.name}"
        if self.choice is not None:
            passed = [one for one in self.candidates if one.problems and one.model.kind == self.choice.model.kind]
            passed = [one for one in passed if one.model.parameters > self.choice.model.parameters]
            next_up = f" The next larger one, {passed[-1].name}: {'; '.join(passed[-1].problems)}." if passed else ""
            return f"{self.task.why} {self.choice.name}: {RULE}, {where}.{next_up}"
        assert self.nearest is not None
        text = f"Nothing fits {where}. The nearest, {self.nearest.name} in {self.nearest.serving.format.name}: "
        return text + "; ".join(self.nearest.problems) + "." + (f" {self.would}" if self.would else "")

    def record(self) -> dict[str, Any]:
        """Return everything with plain names."""
        return {
            "need": self.need.model_dump(mode="json"),
            "machine": {
                "key": self.machine.key,
                "count": self.machine.count,
                **self.machine.gpu.model_dump(mode="json"),
            },
            "choice": self.choice.record() if self.choice else None,
            "nearest": self.nearest.record() if self.nearest else None,
            "why": self.why,
            "candidates": [one.record() for one in self.candidates],
        }


def advise(
    task: str = "chat",
    *,
    language: str | Sequence[str] = "en",
    gpu: str | None = None,
    cpu: bool = False,
    latency: str | float | None = None,
    models_file: str | Path | None = None,
    gpus_file: str | Path | None = None,
    **fields: Any,
) -> Advice:
    """Say which open model to take for a task on a machine: `gpu="a100:2"`, or `cpu=True`: this one, measured.

    `latency` is seconds, or `"200ms"`; `fields` are those of `Need`. Files of your own add models and GPUs.
    """
    if bool(gpu) == cpu:
        raise UsageError("say either which GPU, or cpu", hint="For example: --gpu a100:2, or --cpu")
    spoken = [language] if isinstance(language, str) else list(language)
    values: dict[str, Any] = {"task": task, "language": [_code(one) for item in spoken for one in item.split(",")]}
    if latency is not None:
        values["latency"] = parse_seconds(latency) if isinstance(latency, str) else latency
    values |= {name: value for name, value in fields.items() if value is not None}
    need = parse(Need, values, where="advise")
    if need.budget is not None:
        parse_budget(need.budget)
        if need.price is None:
            hint = "Prices differ by place and day, so none is shipped: --price 2.5"
            raise UsageError("a budget needs a price: what an hour of one GPU costs", hint=hint)
    kind_of_task = find(tasks(), need.task, "task")
    table = known_gpus(Path(gpus_file) if gpus_file else None)
    asked = _asked(models(Path(models_file) if models_file else None), need, kind_of_task)
    return _advice(need, kind_of_task, this_processor() if gpu is None else gpus_of(gpu, table), asked, table)


def _advice(
    need: Need, task: TaskKind, machine: Machine, asked: Mapping[str, OpenModel], table: Mapping[str, Any]
) -> Advice:
    found = sorted(
        (candidate(name, model, machine, need, task) for name, model in asked.items()),
        key=lambda one: (-one.model.parameters, -one.model.released),
    )
    kinds = (need.kind,) if need.kind else task.kinds
    fitting = [one for kind in kinds for one in found if one.model.kind == kind and not one.problems]
    choice = fitting[0] if fitting else None
    nearest = None if choice else min(found, key=lambda one: one.excess)
    would = "" if nearest is None else _would(nearest, machine, need, task, table)
    return Advice(need, task, machine, choice, nearest, would, found)


def _asked(known: Mapping[str, OpenModel], need: Need, task: TaskKind) -> dict[str, OpenModel]:
    """Return the models that may be advised; raises `NotFound` that says which condition leaves none."""
    if need.model is not None:
        return {need.model: find(known, need.model, "model")}
    kinds = (need.kind,) if need.kind else task.kinds
    found = {name: one for name, one in known.items() if need.task in one.tasks and one.kind in kinds}
    if not found:
        raise NotFound(f"no {' or '.join(kinds)} of the table is meant for {need.task}", hint="Add one: --models FILE")
    for language in need.language:
        found = {name: one for name, one in found.items() if one.speaks(language)}
        if not found:
            spoken = {code for one in known.values() for code in one.languages} - {ANY_LANGUAGE}
            raise NotFound(f"no model for {need.task} knows {language!r}", hint=did_you_mean(language, spoken))
    if need.licence:
        licences = {one.licence for one in found.values()}
        wanted = {one.casefold() for one in need.licence}
        found = {name: one for name, one in found.items() if one.licence.casefold() in wanted}
        if not found:
            said = f"no model for {need.task} in {', '.join(need.language)} has the licence {', '.join(need.licence)}"
            raise NotFound(said, hint=did_you_mean(need.licence[0], licences))
    return found


def candidate(name: str, model: OpenModel, machine: Machine, need: Need, task: TaskKind) -> Candidate:
    """Return the best way to serve and to train a model on a machine."""
    lengths = lengths_of(need, task, model)
    ways = list(servings(model, machine, need, lengths))
    serving = next((one for one in ways if not one.problems), None) or min(ways, key=lambda one: one.excess)
    plans = trainings(model, machine, need)
    training = next((one for one in plans if not one.problems), None)
    if training is None and plans:
        training = min(plans, key=lambda one: one.excess)
    return Candidate(name, model, lengths, serving, training)


def _would(near: Candidate, machine: Machine, need: Need, task: TaskKind, table: Mapping[str, Any]) -> str:
    """Say what the nearest candidate fits on: more of the same GPU, or the smallest other one."""
    for other in _others(machine, table):
        if not candidate(near.name, near.model, other, need, task).problems:
            count = f"{other.count} x " if other.count > 1 else ""
            return f"It would fit on {count}{other.gpu.name} (--gpu {other.key}:{other.count})."
    return "It fits on none of the table with these wishes: ask for less."


def _others(machine: Machine, table: Mapping[str, Any]) -> Iterator[Machine]:
    if not machine.cpu:
        yield from (Machine(machine.key, machine.gpu, count) for count in MORE_GPUS if count > machine.count)
    by_size = sorted(table.items(), key=lambda item: (item[1].memory, item[1].bandwidth))
    yield from (Machine(name, gpu, count) for count in (1, 2, 4, 8) for name, gpu in by_size)


def _code(language: str) -> str:
    """Return a language's code; raises `UsageError` for what is none."""
    code = language.strip().lower()
    if not re.fullmatch(r"[a-z]{2,3}", code):
        meant = LANGUAGES.get(code, "")
        hint = f"Did you mean {meant!r}?" if meant else "Codes are those of ISO 639-1: zh, en, de."
        raise UsageError(f"{language!r} is no code of a language", hint=hint)
    return code
