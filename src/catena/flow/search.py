"""What to try next: proposals as a pure function of what is known. No I/O; `tune.py` runs trials.

    coarse    a low-discrepancy start, then TPE (Bergstra et al. 2011) or NSGA-II (Deb et al. 2002)
    fine      Gaussian-process search in a box round the best three, until it gains next to nothing

A proposal depends on the space, the seed, its number, the trials that are known and the values of those under way, and
on nothing else: a search that was killed goes on with the proposals that it would have made.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from catena.core.digest import digest_of
from catena.core.registry import require
from catena.flow.space import Choice, Parameter, TuneConfig, inside, shrink

if TYPE_CHECKING:
    import optuna

Phase = Literal["coarse", "fine"]
BEST = 3
"""The fine stage looks round so many of the best trials."""
FEWEST_CURVES = 4
"""Known curves below which no trial is given up."""


@dataclass(frozen=True)
class Trial:
    """One trial that has ended."""

    number: int
    phase: Phase
    values: Mapping[str, Choice]
    """Parameter to value."""
    scores: tuple[float, ...] = ()
    """One for each objective; empty where the training failed."""
    status: Literal["done", "pruned", "failed"] = "done"
    curve: Mapping[int, float] = field(default_factory=dict)
    """The first objective over the training steps, where it has a course."""
    ref: str = ""
    """What the output is called: `name@version`."""
    digest: str = ""
    """Of the output."""
    seconds: float = 0.0
    """Wall time of the step that was tuned, in the run that did the work."""
    error: str = ""


def cost(config: TuneConfig, trial: Trial) -> tuple[float, ...]:
    """Return a trial's scores so that lower is better in each."""
    signs = [1.0 if objective.goal == "lower" else -1.0 for objective in config.objectives]
    return tuple(sign * score for sign, score in zip(signs, trial.scores, strict=True))


def ranked(config: TuneConfig, trials: Sequence[Trial]) -> list[Trial]:
    """Return the trials that ended well, the best (by the first objective, then by the others) first."""
    return sorted((trial for trial in trials if trial.status == "done"), key=lambda trial: cost(config, trial))


def front(config: TuneConfig, trials: Sequence[Trial]) -> list[Trial]:
    """Return the trials that no other one beats in every objective, in the order of the first."""
    good = ranked(config, trials)
    return [trial for trial in good if not any(_beats(cost(config, other), cost(config, trial)) for other in good)]


def _beats(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one != other and all(mine <= theirs for mine, theirs in zip(one, other, strict=True))


def phase_of(config: TuneConfig, number: int) -> Phase:
    """Return the stage that a trial belongs to. Several objectives have no fine stage: there is no one best place."""
    return "fine" if len(config.objectives) == 1 and number >= config.coarse_trials else "coarse"


def waits_for(config: TuneConfig, number: int, jobs: int) -> int:
    """Return how many trials, from the first on, have to be known before this one is proposed.

    Others may be known by then, and are not looked at: which of two ends first is chance, and must decide nothing.
    """
    known = max(0, number - jobs + 1)
    return max(known, config.coarse_trials) if phase_of(config, number) == "fine" else known


def is_over(config: TuneConfig, number: int, known: Sequence[Trial]) -> bool:
    """Tell whether the search ends before trial `number`: no trials left, or the fine stage gains next to nothing."""
    if number >= config.trials:
        return True
    fine = [trial for trial in known if trial.phase == "fine"]
    if len(fine) < config.patience:
        return False
    before = ranked(config, [trial for trial in known if trial not in fine[-config.patience :]])
    now = ranked(config, known)
    return bool(before) and cost(config, before[0])[0] - cost(config, now[0])[0] < config.tolerance


def propose(
    config: TuneConfig, seed: int, number: int, known: Sequence[Trial], under_way: Sequence[Trial] = ()
) -> dict[str, Choice]:
    """Return the values that trial `number` is to have, given the trials that are known.

    Those `under_way` have no scores yet: they count as bad, so that nobody tries the same beside them.
    """
    require("optuna", "tune")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna warns of its own samplers: they are experimental
        return _proposed(config, seed, number, known, under_way)


def _proposed(
    config: TuneConfig, seed: int, number: int, known: Sequence[Trial], under_way: Sequence[Trial]
) -> dict[str, Choice]:
    start = max(4, config.coarse_trials // 2)
    if config.method == "random":
        return _random(config.space, seed, number)
    if config.method == "tpe" and number < min(start, config.coarse_trials):
        return _spread(config.space, seed, number, start)
    if phase_of(config, number) == "fine":
        box = shrink(config.space, [trial.values for trial in ranked(config, known)[:BEST]], config.margin)
        near = [trial for trial in (*known, *under_way) if inside(box, trial.values)]
        return _ask(config, _gaussian(_seed(seed, number)), box, near)
    if config.method == "genetic":
        return _ask(config, _genetic(config, _seed(seed, number)), config.space, known)
    return _ask(config, _tpe(_seed(seed, number)), config.space, [*known, *under_way])


def bars(config: TuneConfig, known: Sequence[Trial]) -> dict[int, float]:
    """Return for each training step the cost that a trial must not exceed there: the median of those known."""
    if not config.prune:
        return {}
    sign = 1.0 if config.objectives[0].goal == "lower" else -1.0
    at: dict[int, list[float]] = {}
    for trial in known:
        for step, value in trial.curve.items():
            at.setdefault(step, []).append(sign * value)
    return {step: _median(values) for step, values in sorted(at.items()) if len(values) >= FEWEST_CURVES}


def _median(values: Sequence[float]) -> float:
    middle, odd = divmod(len(values), 2)
    ordered = sorted(values)
    return ordered[middle] if odd else (ordered[middle - 1] + ordered[middle]) / 2


def _seed(seed: int, number: int) -> int:
    return int(digest_of([seed, number])[:8], 16)


def _random(space: Mapping[str, Parameter], seed: int, number: int) -> dict[str, Choice]:
    import random

    chance = random.Random(_seed(seed, number))
    return {name: parameter.at(chance.random()) for name, parameter in space.items()}


def _spread(space: Mapping[str, Parameter], seed: int, number: int, count: int) -> dict[str, Choice]:
    """Return point `number` of a scrambled Sobol sequence: as random as random, and without holes."""
    require("scipy", "tune")
    from scipy.stats import qmc

    points = qmc.Sobol(len(space), scramble=True, rng=_seed(seed, -1)).random_base2(math.ceil(math.log2(count)))
    return {name: space[name].at(float(share)) for name, share in zip(space, points[number], strict=True)}


def _tpe(seed: int) -> optuna.samplers.BaseSampler:
    from optuna.samplers import TPESampler

    return TPESampler(seed=seed, n_startup_trials=1, multivariate=True)


def _gaussian(seed: int) -> optuna.samplers.BaseSampler:
    from optuna.samplers import GPSampler

    return GPSampler(seed=seed, n_startup_trials=1)


def _genetic(config: TuneConfig, seed: int) -> optuna.samplers.BaseSampler:
    from optuna.samplers import NSGAIISampler

    return NSGAIISampler(seed=seed, population_size=config.population)


def _ask(
    config: TuneConfig, sampler: optuna.samplers.BaseSampler, space: Mapping[str, Parameter], known: Sequence[Trial]
) -> dict[str, Choice]:
    """Ask Optuna, over a study in memory that holds the known trials and nothing else."""
    import optuna

    distributions = {name: _distribution(parameter) for name, parameter in space.items()}
    worst = _worst(config, known)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=sampler, directions=["minimize"] * len(config.objectives))
    for trial in known:
        study.add_trial(
            optuna.trial.create_trial(
                params=dict(trial.values),
                distributions=distributions,
                # A training that failed, or is under way, says: not here. Left out, it would be proposed again.
                values=list(cost(config, trial)) if trial.scores else worst,
                system_attrs={"NSGAIISampler:generation": trial.number // config.population},
            )
        )
    asked = study.ask(distributions)
    return {name: parameter.rounded(asked.params[name]) for name, parameter in space.items()}


def _worst(config: TuneConfig, known: Sequence[Trial]) -> list[float]:
    costs = [cost(config, trial) for trial in known if trial.scores]
    return [max(column) for column in zip(*costs, strict=True)] if costs else [0.0] * len(config.objectives)


def _distribution(parameter: Parameter) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if parameter.kind == "choice":
        return CategoricalDistribution(parameter.choices)
    assert parameter.low is not None
    assert parameter.high is not None
    if parameter.kind == "int":
        return IntDistribution(int(parameter.low), int(parameter.high), step=parameter.step)
    return FloatDistribution(parameter.low, parameter.high, log=parameter.kind == "log")
