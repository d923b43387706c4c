"""Recipes: YAML to typed, wired steps. Everything is checked before anything runs.

    name: python-helper
    seed: 7
    steps:
      pages: {stage: data.crawl, with: {site: pydoc}}
      text:  {stage: data.extract, use: {source: pages}}

`use` names another step, or something stored (`name@tag`). `name` and `tags` of a step say what its output is called;
without `name` it is `<recipe>/<step>`. There are no expressions: logic is a Python function that returns a `Recipe`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from pydantic import Field

from catena.core.config import Config, check, override
from catena.core.errors import CatenaError, RecipeError, did_you_mean
from catena.core.source import Source, read_source
from catena.core.stage import Stage, stage_of
from catena.core.types import ArtifactBase
from catena.flow.space import TuneConfig, problems_of
from catena.flow.table import STAGES
from catena.hub.store import NAME, TAG, Store


class StepText(Config):
    """A step as written."""

    stage: str
    """Name of a stage; `catena explain` lists them."""
    use: dict[str, str] = Field(default_factory=dict)
    """Input name to a step of this recipe, or to something stored (`name@tag`)."""
    # The YAML key is `with`, which Python keeps for itself.
    with_: dict[str, Any] = Field(default_factory=dict, alias="with")
    """The stage's config."""
    name: str | None = None
    """What the output is called."""
    tags: tuple[str, ...] = ()
    """Tags that the output gets."""
    seed: int | None = None
    """Instead of the recipe's seed."""


class RecipeText(Config):
    """A recipe as written."""

    name: str
    description: str = ""
    seed: int = 0
    steps: dict[str, StepText] = Field(min_length=1)
    tune: TuneConfig | None = None
    """A search over a step's config; the step then runs with the best values."""


@dataclass(frozen=True)
class Step:
    """A step that has passed every check."""

    key: str
    stage: Stage
    config: Config
    use: Mapping[str, str]
    """Input name to a step's key (in `Recipe.steps`) or to a reference."""
    name: str
    tags: tuple[str, ...]
    seed: int


@dataclass(frozen=True)
class Recipe:
    """A checked chain; `steps` are in an order in which each comes after what it uses."""

    name: str
    steps: Mapping[str, Step]
    description: str = ""
    text: str = ""
    """The YAML it came from, with overrides noted."""
    tune: TuneConfig | None = None

    def until(self, key: str | None) -> list[Step]:
        """Return the steps that `key` needs and itself, in order; all for None."""
        if key is None:
            return list(self.steps.values())
        if key not in self.steps:
            raise RecipeError(f"the recipe {self.name!r} has no step {key!r}", hint=did_you_mean(key, self.steps))
        wanted, waiting = set(), [key]
        while waiting:
            current = waiting.pop()
            if current in wanted or current not in self.steps:
                continue
            wanted.add(current)
            waiting.extend(self.steps[current].use.values())
        return [step for name, step in self.steps.items() if name in wanted]


@dataclass
class _Checker:
    """Collects every problem of one recipe, each with its place."""

    source: Source
    overridden: tuple[str, ...] = ()
    problems: list[str] = field(default_factory=list)

    def add(self, path: Sequence[str | int], message: str, hint: str = "") -> None:
        dotted = ".".join(str(part) for part in path)
        by_hand = any(dotted == name or dotted.startswith(name + ".") for name in self.overridden)
        where = f"--set {dotted}" if by_hand else self.source.where(path)
        self.problems.append(f"{where}: {message}" + (f" {hint}" if hint else ""))


def load_recipe(path: str | Path, *, overrides: Sequence[str] = (), store: Store | None = None) -> Recipe:
    """Read and check a recipe file. With a store, references to stored things are checked too.

    `overrides` are `step.key=value` (the step's config), or `seed=3`, or `steps.step.use.source=name@tag` in full.
    Raises one `RecipeError` that lists every problem with file, line and what was meant.
    """
    return check_recipe(read_source(Path(path)), overrides=overrides, store=store)


def one_step(
    stage: str,
    inputs: Mapping[str, str],
    config: Mapping[str, Any],
    *,
    name: str | None = None,
    seed: int = 0,
    store: Store | None = None,
) -> Recipe:
    """Return the checked recipe of one stage on stored things; its step is called as the stage is."""
    step: dict[str, Any] = {"stage": stage, "use": dict(inputs), "with": dict(config)}
    if name:
        step["name"] = name
    values = {"name": "do", "seed": seed, "steps": {stage.rpartition(".")[2]: step}}
    return check_recipe(Source(f"catena do {stage}", "", values), store=store)


def check_recipe(source: Source, *, overrides: Sequence[str] = (), store: Store | None = None) -> Recipe:
    """Check a parsed recipe; see `load_recipe`."""
    if not isinstance(source.values, dict):
        raise RecipeError(f"{source.name}: a recipe is a mapping with `name` and `steps`")
    full = [_full_path(assignment, source.values) for assignment in overrides]
    values = override(source.values, full)
    checker = _Checker(source, tuple(assignment.partition("=")[0] for assignment in full))
    written, problems = check(RecipeText, values)
    for problem in problems:
        place = "" if repr(problem.path[-1]) in problem.message else ".".join(map(str, problem.path)) + ": "
        checker.add(problem.path, place + problem.message, problem.hint)
    _raise(checker)
    assert written is not None
    if not NAME.fullmatch(written.name):
        checker.add(("name",), f"{written.name!r} cannot be a name: use letters, digits, '.', '_', '-' and '/'.")
    steps = {key: step for key, text in written.steps.items() if (step := _step(checker, written, key, text))}
    for key in steps:
        _check_edges(checker, written, steps, key, store)
    if written.tune is not None and len(steps) == len(written.steps):
        for path, message in problems_of(written.tune, {key: step.config for key, step in steps.items()}):
            checker.add(("tune", *path), message)
    order = _order(checker, written)
    _raise(checker)
    noted = "".join(f"# --set {assignment}\n" for assignment in overrides)
    ordered = {key: steps[key] for key in order}
    return Recipe(written.name, ordered, written.description, noted + source.text, written.tune)


def _full_path(assignment: str, values: Mapping[str, Any]) -> str:
    """Turn `step.key=value` into `steps.step.with.key=value`; a path that starts at a key of the recipe stays."""
    path, sign, value = assignment.partition("=")
    first, _, rest = path.partition(".")
    steps = values.get("steps")
    mine = isinstance(steps, Mapping) and first == "tune" and first in steps  # a step may be called that
    if rest and (mine or first not in RecipeText.model_fields) and isinstance(steps, Mapping):
        if first not in steps:
            raise RecipeError(f"--set {path}: there is no step {first!r}", hint=did_you_mean(first, map(str, steps)))
        path = f"steps.{first}.with.{rest}"
    return path + sign + value


def _raise(checker: _Checker) -> None:
    if checker.problems:
        count = len(checker.problems)
        summary = checker.problems[0] if count == 1 else f"{count} problems:\n  " + "\n  ".join(checker.problems)
        raise RecipeError(
            summary,
            hint="Nothing was run. `catena explain STAGE` shows a stage's inputs and config.",
            problems=checker.problems,
        )


def _step(checker: _Checker, recipe: RecipeText, key: str, text: StepText) -> Step | None:
    path = ("steps", key)
    if not NAME.fullmatch(key) or "/" in key:
        checker.add(path, f"{key!r} cannot be a step's name.")
    name = text.name or f"{recipe.name}/{key}"
    if not NAME.fullmatch(name):
        checker.add((*path, "name"), f"{name!r} cannot be a name.")
    for tag in text.tags:
        if not TAG.fullmatch(tag) or tag == "latest":
            checker.add((*path, "tags"), f"{tag!r} cannot be a tag.")
    if text.stage not in STAGES:
        checker.add((*path, "stage"), f"unknown stage {text.stage!r}.", did_you_mean(text.stage, STAGES))
        return None
    stage = stage_of(STAGES.load(text.stage))
    config, problems = check(stage.config, text.with_)
    for problem in problems:
        checker.add((*path, "with", *problem.path), f"step {key!r}, {problem.line()}")
    if config is None:
        return None
    return Step(key, stage, config, text.use, name, text.tags, recipe.seed if text.seed is None else text.seed)


def _check_edges(
    checker: _Checker, recipe: RecipeText, steps: Mapping[str, Step], key: str, store: Store | None
) -> None:
    step, path = steps[key], ("steps", key, "use")
    for name, target in step.use.items():
        if name not in step.stage.inputs:
            checker.add(
                (*path, name),
                f"step {key!r}: the stage {step.stage.name} has no input {name!r}.",
                did_you_mean(name, step.stage.inputs),
            )
            continue
        if target in recipe.steps:
            given = steps[target].stage.output if target in steps else ()
        else:
            given = _stored(checker, (*path, name), target, recipe, store)
        wanted = step.stage.inputs[name]
        if given and not set(given) & set(wanted):
            checker.add(
                (*path, name),
                f"step {key!r}: the input {name!r} takes {_kinds(wanted)}, and {target!r} is {_kinds(given)}.",
            )
    for name in step.stage.inputs:
        if name not in step.use and name not in step.stage.optional:
            checker.add(path, f"step {key!r}: the input {name!r} ({_kinds(step.stage.inputs[name])}) is missing.")


def _stored(
    checker: _Checker, path: Sequence[str], target: str, recipe: RecipeText, store: Store | None
) -> tuple[type[ArtifactBase], ...]:
    if store is None:
        return ()
    try:
        return (type(store.resolve(target)),)
    except CatenaError as error:
        others = [key for key in recipe.steps if key != path[1]]
        close = get_close_matches(target, others, n=1)
        hint = f"Did you mean {close[0]!r}?" if close else error.hint
        checker.add(path, f"{target!r} is neither a step of this recipe nor stored: {error.message}.", hint)
        return ()


def _kinds(classes: Sequence[type[ArtifactBase]]) -> str:
    return " or ".join(f"a {item.model_fields['kind'].default}" for item in classes)


def _order(checker: _Checker, recipe: RecipeText) -> list[str]:
    """Return the keys in an order that respects `use`, otherwise as written."""
    graph = {
        key: [target for target in text.use.values() if target in recipe.steps] for key, text in recipe.steps.items()
    }
    try:
        sorter = TopologicalSorter(graph)
        sorter.prepare()
    except CycleError as error:
        circle = list(reversed(error.args[1]))
        checker.add(("steps", circle[0], "use"), f"the steps form a circle: {' -> '.join(circle)}.")
        return list(recipe.steps)
    return list(_as_written(sorter, list(graph)))


def _as_written(sorter: TopologicalSorter[str], written: list[str]) -> Iterator[str]:
    ready: list[str] = []
    while sorter.is_active():
        ready = sorted([*ready, *sorter.get_ready()], key=written.index)
        first = ready.pop(0)
        yield first
        sorter.done(first)
