"""Search spaces as written in a recipe's section `tune` or in a file of their own: names, kinds and bounds. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from catena.core.config import Config, check
from catena.core.errors import ConfigError, did_you_mean
from catena.core.source import read_source

Choice = bool | int | float | str
DIGITS = 4
"""Significant digits of a proposed number: a config is to be read by people."""


class Parameter(Config):
    """What one value of a step's config may be."""

    kind: Literal["float", "log", "int", "choice"] = "float"
    """`float` and `int` between bounds; `log`: a number whose magnitude counts (a rate); `choice`: one of a list."""
    low: float | None = None
    """Lowest value."""
    high: float | None = None
    """Highest value."""
    step: int = Field(default=1, ge=1)
    """Distance between two values of an `int`."""
    choices: tuple[Choice, ...] = ()
    """Values of a `choice`."""

    @model_validator(mode="after")
    def _consistent(self) -> Parameter:
        if self.kind == "choice":
            if not self.choices or self.low is not None or self.high is not None:
                raise ValueError("a choice has `choices`, and neither low nor high")
            return self
        if self.choices:
            raise ValueError(f"`choices` belong to the kind choice, not to {self.kind}")
        if self.low is None or self.high is None or not self.low <= self.high or not math.isfinite(self.high):
            raise ValueError(f"the kind {self.kind} needs low and high, low not above high")
        if self.kind == "log" and self.low <= 0:
            raise ValueError("the kind log needs a low above 0")
        if self.kind == "int" and (self.low % 1 or self.high % 1 or (self.high - self.low) % self.step):
            raise ValueError("an int has whole bounds, a whole number of steps apart")
        return self

    @property
    def ends(self) -> tuple[Choice, ...]:
        """The extreme values, each of which the step's config must take."""
        return self.choices if self.kind == "choice" else (self.rounded(self.low or 0), self.rounded(self.high or 0))

    def at(self, share: float) -> Choice:
        """Return the value at a share of the way from the first to the last, `share` in [0, 1)."""
        if self.kind == "choice":
            return self.choices[int(share * len(self.choices))]
        low, high = self._scaled_bounds()
        if self.kind == "int":
            return int(low) + self.step * int(share * ((high - low) // self.step + 1))
        value = low + share * (high - low)
        return self.rounded(math.exp(value) if self.kind == "log" else value)

    def share(self, value: Choice) -> float:
        """Return where a number lies between the bounds, 0 to 1, on the scale of the kind."""
        low, high = self._scaled_bounds()
        place = math.log(float(value)) if self.kind == "log" else float(value)
        return (place - low) / (high - low) if high > low else 0.0

    def rounded(self, value: Choice) -> Choice:
        """Return a proposed value as it goes into a config, inside the bounds."""
        if self.kind == "choice":
            return value
        if self.kind == "int":
            return int(value)
        assert self.low is not None
        assert self.high is not None
        return min(max(float(f"{float(value):.{DIGITS}g}"), self.low), self.high)

    def _scaled_bounds(self) -> tuple[float, float]:
        assert self.low is not None
        assert self.high is not None
        return (math.log(self.low), math.log(self.high)) if self.kind == "log" else (self.low, self.high)


class Objective(Config):
    """What a trial is judged by."""

    metric: str = "val_loss"
    """A metric or curve of the step, a score of its report, or `seconds`, `size`, `parameters`."""
    goal: Literal["lower", "higher"] = "lower"
    """Which is better."""
    point: Literal["last", "best"] = "last"
    """Which value of a curve counts; `best` where the step keeps the weights of its best measurement."""


class TuneConfig(Config):
    """A search: which step, over what, judged how."""

    step: str
    """The step of the recipe whose config is searched."""
    space: dict[str, Parameter] = Field(default_factory=dict)
    """Name of a value in the step's config (`a.b` for one in a section) to what it may be. Empty: rate 1e-5 to 5e-5,
    batch 32 to 256 and warm-up 5 to 10 % of the steps, as far as the step has them."""
    objectives: tuple[Objective, ...] = Field(default=(Objective(),), min_length=1, max_length=4)
    """What is made as low or high as it can be. Several: the trials that none beats in all are the result."""
    measure: str | None = None
    """A later step (an evaluation) whose scores count; it is run in each trial with all that lies between."""
    method: Literal["tpe", "genetic", "random"] = "tpe"
    """How the coarse stage proposes. `random` is for comparison and has no fine stage."""
    trials: int = Field(default=30, ge=1, le=10_000)
    """How many trials at most, both stages together."""
    coarse_share: float = Field(default=0.6, gt=0, le=1)
    """Share of the trials for the coarse stage; 1 leaves the fine one out."""
    margin: float = Field(default=0.1, ge=0, le=1)
    """How far the fine stage's box reaches beyond the best three, as a share of the whole range."""
    tolerance: float = Field(default=0.001, ge=0)
    """The fine stage ends when its last trials made the result better by less than this."""
    patience: int = Field(default=5, ge=1)
    """How many those last trials are."""
    population: int = Field(default=10, ge=2)
    """Trials of one generation of the genetic search."""
    prune: bool = False
    """Give a trial up when its curve is above the median of the known ones at the same step."""
    jobs: int = Field(default=1, ge=1, le=1024)
    """Trials at once. A proposal then knows of fewer results, so another number is another search."""
    tag: str = ""
    """Tag that the best trial's output gets; empty for none."""

    @property
    def coarse_trials(self) -> int:
        """Trials of the coarse stage."""
        if len(self.objectives) > 1 or self.method == "random":
            return self.trials
        return max(1, round(self.coarse_share * self.trials))


def default_space(fields: Mapping[str, object], steps: int | None) -> dict[str, Parameter]:
    """Return the space of fine-tuning for a config with these fields; `steps`: how many it takes, if it says."""
    space = {
        "learning_rate": Parameter(kind="log", low=1e-5, high=5e-5),
        "batch_size": Parameter(kind="int", low=32, high=256, step=32),
        "warmup_share": Parameter(kind="float", low=0.05, high=0.10),
    }
    if steps and "warmup_share" not in fields:
        low, high = math.floor(0.05 * steps), math.ceil(0.10 * steps)
        space["warmup_steps"] = Parameter(kind="int", low=low, high=high)
    return {name: parameter for name, parameter in space.items() if name in fields}


def read_space(path: Path) -> dict[str, Any]:
    """Read a file of names and what each may be. Raises `ConfigError` that lists every mistake with its line."""
    source = read_source(path)
    if not isinstance(source.values, dict) or not all(isinstance(value, dict) for value in source.values.values()):
        raise ConfigError(f"{path}: a search space is a mapping from names to {{kind, low, high}} or {{kind, choices}}")
    mistakes = [
        f"{source.where((name, *problem.path))}: {name}: {problem.line().removeprefix(': ')}"
        for name, written in source.values.items()
        for problem in check(Parameter, written)[1]
    ]
    if mistakes:
        raise ConfigError("; ".join(mistakes))
    return dict(source.values)


def space_of(config: Config, tune: TuneConfig) -> dict[str, Parameter]:
    """Return the space to search for a step's config: the one that is written, or the default."""
    return tune.space or default_space(type(config).model_fields, getattr(config, "steps", None))


def with_values(config: Config, values: Mapping[str, Choice]) -> dict[str, Any]:
    """Return a config as a mapping with these values (`a.b` leads into a section) in place."""
    written = config.model_dump(mode="json")
    for path, value in values.items():
        *parents, last = path.split(".")
        target = written
        for parent in parents:
            target = target.setdefault(parent, {})
        target[last] = value
    return written


def problems_of(tune: TuneConfig, configs: Mapping[str, Config]) -> list[tuple[tuple[str, ...], str]]:
    """Return what is wrong with a search over steps with these configs: where in the section, and a sentence."""
    for field, key in (("step", tune.step), ("measure", tune.measure)):
        if key is not None and key not in configs:
            return [((field,), f"the recipe has no step {key!r}. {did_you_mean(key, configs)}")]
    config = configs[tune.step]
    space = space_of(config, tune)
    if not space:
        return [(("space",), f"the step {tune.step!r} has none of the values that are searched by default.")]
    found = []
    for name, parameter in space.items():
        made = []
        for value in dict.fromkeys(parameter.ends):
            tried, problems = check(type(config), with_values(config, {name: value}))
            found += [(("space", name), problem.line()) for problem in problems]
            made += [tried.deciding()] if tried else []
        if len(made) > 1 and all(other == made[0] for other in made):
            found.append((("space", name), "it changes nothing of what comes out: every trial would be the first one."))
    return list(dict.fromkeys(found))


def shrink(space: Mapping[str, Parameter], best: Sequence[Mapping[str, Choice]], margin: float) -> dict[str, Parameter]:
    """Return the smallest box round the best trials, with a margin; the space itself where none is known."""
    if not best:
        return dict(space)
    return {name: _shrunk(parameter, [values[name] for values in best], margin) for name, parameter in space.items()}


def _shrunk(parameter: Parameter, values: Sequence[Choice], margin: float) -> Parameter:
    if parameter.kind == "choice":
        return parameter  # three trials cannot tell that a choice is bad
    shares = [parameter.share(value) for value in values]
    low, high = max(0.0, min(shares) - margin), min(1.0, max(shares) + margin)
    start, end = parameter._scaled_bounds()
    if parameter.kind == "int":
        count = round((end - start) / parameter.step)
        bounds = [start + parameter.step * place for place in (math.floor(low * count), math.ceil(high * count))]
    else:
        bounds = [start + share * (end - start) for share in (low, high)]
        bounds = [math.exp(bound) for bound in bounds] if parameter.kind == "log" else bounds
        bounds = [float(parameter.rounded(bound)) for bound in bounds]
    numbers = [float(value) for value in values]  # rounding must not put a best one outside
    return parameter.model_copy(update={"low": min(bounds[0], *numbers), "high": max(bounds[1], *numbers)})


def inside(box: Mapping[str, Parameter], values: Mapping[str, Choice]) -> bool:
    """Tell whether values lie in a box."""
    return all(_holds(parameter, values[name]) for name, parameter in box.items())


def _holds(parameter: Parameter, value: Choice) -> bool:
    if parameter.kind == "choice":
        return value in parameter.choices
    assert parameter.low is not None
    assert parameter.high is not None
    return parameter.low <= float(value) <= parameter.high
