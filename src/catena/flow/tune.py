"""Search: runs trials of a recipe's step, each an ordinary run with other values, and reports the best.

    section `tune` of a recipe -> proposals (search) -> trials (trial, by a team) -> journal -> report, best values

A trial's output is found by the step's key as any step's is, and `trials.jsonl` in the search's work folder holds what
ended. A search that is killed and started again proposes what it would have proposed, and runs nothing twice.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from catena.core.config import parse
from catena.core.cpu import guard
from catena.core.digest import digest_of
from catena.core.errors import Cancelled, ConfigError, DataError, UsageError
from catena.core.events import Events, Listener
from catena.core.types import Artifact, Report, Run, Score
from catena.flow.journal import Journal, line_of, trial_from
from catena.flow.plan import after_stored, find_done, pinned, step_key, stored_inputs
from catena.flow.recipe import Recipe, Step
from catena.flow.run import describe_machine, interruptible, run_recipe
from catena.flow.search import Trial, bars as bars_of, front, is_over, phase_of, propose, ranked, waits_for
from catena.flow.space import Choice, TuneConfig, problems_of, space_of, with_values
from catena.flow.team import Team, make_team
from catena.flow.trial import step_record
from catena.hub.index import now
from catena.hub.store import Store

SUITE = "tune"


@dataclass(frozen=True)
class Tuned:
    """What a search found."""

    report: Report
    ref: str
    """`name@version` of the report."""
    best: Trial
    trials: tuple[Trial, ...]
    recipe: Recipe
    """The recipe with the best values in place; running it takes the best trial's output from the store."""
    config: TuneConfig
    """The search as it was run, its space in full."""
    page: Path
    """The report's HTML page."""

    @property
    def front(self) -> list[Trial]:
        """The trials that no other one beats in every objective."""
        return front(self.config, self.trials)


def tune(store: Store, recipe: Recipe, *, listeners: Iterable[Listener] = (), on: str = "local") -> Tuned:
    """Run the search of a recipe's section `tune`. `on` says where trials run: "local" processes or "ray".

    Raises `UsageError` without such a section, `DataError` where every trial failed, and what stopped a trial.
    """
    if recipe.tune is None:
        raise UsageError(
            f"the recipe {recipe.name!r} has no section tune",
            hint="Write one, or give --step and --space to `catena tune`.",
        )
    guard()
    with store.lock("gc", shared=True):
        search = _Search(store, recipe, recipe.tune, tuple(listeners), on)
        with store.lock(f"tune-{search.key[:32]}"):
            return search.before() or search.run()


def with_search(recipe: Recipe, section: Mapping[str, Any]) -> Recipe:
    """Return a recipe whose section `tune` has these fields too. Raises `ConfigError` that lists every mistake."""
    written = recipe.tune.model_dump(mode="json", exclude_unset=True) if recipe.tune else {}
    if len(recipe.steps) == 1:
        written = {"step": next(iter(recipe.steps)), **written}
    config = parse(TuneConfig, {**written, **section}, where="tune")
    problems = problems_of(config, {key: step.config for key, step in recipe.steps.items()})
    if problems:
        lines = "; ".join(f"tune.{'.'.join(path)}: {message}" for path, message in problems)
        raise ConfigError(lines, hint="Nothing was run. `catena explain STAGE` shows a stage's config.")
    return replace(recipe, tune=config)


def settled(store: Store, recipe: Recipe, until: str | None, listeners: Iterable[Listener], on: str) -> Recipe:
    """Return a recipe whose section `tune`, if what is wanted needs its step, has been replaced by the best values."""
    wanted = {step.key for step in recipe.until(until)}
    if recipe.tune is None or recipe.tune.step not in wanted:
        return recipe
    return tune(store, recipe, listeners=listeners, on=on).recipe


class _Search:
    """One search over one step."""

    def __init__(
        self, store: Store, recipe: Recipe, config: TuneConfig, listeners: tuple[Listener, ...], on: str
    ) -> None:
        self.store, self.recipe, self.listeners, self.on = store, recipe, listeners, on
        self.step = recipe.steps[config.step]
        self.config = config.model_copy(update={"space": space_of(self.step.config, config)})
        between = _between(recipe, config)
        self.given, self.refs = self._upstream(between)
        between = [pinned(store, after_stored(store, step, self._inputs(step))) for step in between]
        self.step, self.inputs = between[0], self._inputs(between[0])
        self.steps = [self._wired(step) for step in between]
        self.key = digest_of(
            {
                "search": self.config.model_dump(mode="json", exclude={"tag"}),
                "step": step_key(self.step, self.inputs),
                "measured by": [[step.key, step.use, step_key(step, self._inputs(step))] for step in between[1:]],
            }
        )
        self.started = now()
        self.group = f"{self.started:%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:6]}"
        self.events = Events(store.group_folder(self.group) / "events.jsonl", listeners)
        self.journal = Journal(store.workdir(self.key) / "trials.jsonl")

    def _upstream(self, between: Sequence[Step]) -> tuple[dict[str, Artifact], dict[str, str]]:
        """Make what the searched steps are given; returns it, and `name@version` of it, by step or reference."""
        given = stored_inputs(self.store, self.recipe, between)
        refs = {target: self._ref(item.digest, target.partition("@")[0]) for target, item in given.items()}
        inside = {step.key for step in between}
        wanted = self.recipe.until(self.config.measure or self.config.step)
        needed = {step.key: step for step in wanted if step.key not in inside}
        if not needed:
            return given, refs
        done = run_recipe(self.store, replace(self.recipe, steps=needed), listeners=self.listeners, on=self.on)
        return given | done.outputs, refs | done.names

    def _inputs(self, step: Step) -> dict[str, Artifact]:
        """Return what a step is given from outside the search."""
        return {name: self.given[target] for name, target in step.use.items() if target in self.given}

    def _wired(self, step: Step) -> Step:
        use = {name: self.refs.get(target, target) for name, target in step.use.items()}
        return replace(step, use=use, name=f"{step.name}/trial", tags=())

    def before(self) -> Tuned | None:
        """Return what an earlier search found that was this one."""
        found = find_done(self.store, self.key)
        if found is None or not isinstance(found[1], Report):
            return None
        run, report = found[0], found[1]
        trials = Journal(self.store.checkout(report) / "trials.jsonl").trials.values()
        named = [replace(trial, ref=self._ref(trial.digest, self.steps[0].name)) for trial in trials]
        best = ranked(self.config, named)[0]
        self._tag(best)
        self.events.log(f"this search was done before (run {run.id})")
        return self._tuned(report, self._ref(report.digest, run.name), best, named)

    def _ref(self, digest: str, name: str) -> str:
        found = [row for row in self.store.index.versions(digest=digest) if row.name == name] if digest else []
        return f"{found[-1].name}@{found[-1].version}" if found else digest[:12]

    def run(self) -> Tuned:
        """Run what is missing, and report."""
        config, trials = self.config, self.journal.trials
        self.events.emit("start", group=self.group, recipe=self.recipe.name, steps=[self.step.key], pid=os.getpid())
        progress = self.events.progress("search", config.trials, "trials", done=len(trials))
        if trials:
            self.events.log(f"going on with {len(trials)} trials that are done")
        try:
            with interruptible(), make_team(self.store, self.on, config.jobs, self._listen) as team:
                self._search(team, progress)
        except KeyboardInterrupt:
            raise Cancelled("stopped", hint="The same command goes on; trials that ended are kept.") from None
        progress.finish()
        return self._finish([trials[number] for number in sorted(trials)])

    def _listen(self, event: dict[str, Any]) -> None:
        for listener in self.listeners:
            listener(event)

    def _search(self, team: Team, progress: Any) -> None:
        config, trials = self.config, self.journal.trials
        number, running = 0, 0
        proposed: dict[int, Trial] = {}
        while True:
            needed = waits_for(config, number, config.jobs)
            while any(other not in trials for other in range(needed)):
                running -= 1
                self._ended(team.next())
                progress.advance()
            known = [trials[other] for other in range(needed)]
            if is_over(config, number, known):
                break
            if number not in trials:
                # Not who is under way by chance, but who is not known yet: so it is the same each time.
                others = [proposed[other] for other in range(needed, number)]
                values = propose(config, self.step.seed, number, known, others)
                team.start(self._work(number, values, known))
                running += 1
            else:
                values = dict(trials[number].values)
            proposed[number] = Trial(number, phase_of(config, number), values)
            number += 1
        for _ in range(running):
            self._ended(team.next())
            progress.advance()

    def _work(self, number: int, values: Mapping[str, Choice], known: Sequence[Trial]) -> dict[str, Any]:
        config = parse(type(self.step.config), with_values(self.step.config, values), where=f"trial {number}")
        steps = [replace(self.steps[0], config=config), *self.steps[1:]]
        name, told = f"trial {number}", {"config": config.model_dump(mode="json"), "seed": self.step.seed}
        self.events.emit("step", step=name, status="running", stage=self.step.stage.name, **told)
        return {
            "number": number,
            "phase": phase_of(self.config, number),
            "values": dict(values),
            "recipe": self.recipe.name,
            "text": noted(self.step.key, values) + self.recipe.text,
            "steps": [step_record(step) for step in steps],
            "tuned": self.step.key,
            "measure": self.config.measure,
            "objectives": [objective.model_dump(mode="json") for objective in self.config.objectives],
            "bars": bars_of(self.config, known),
        }

    def _ended(self, told: Mapping[str, Any]) -> None:
        trial = trial_from(told)
        self.journal.add(trial)
        self.events.emit(
            "step",
            step=f"trial {trial.number}",
            status="failed" if trial.status == "failed" else "done",
            stage=self.step.stage.name,
            ref=trial.ref,
            seconds=trial.seconds,
            note=trial.error or f"{described(self.config, trial)}  ({_words(trial.values)})",
        )

    def _finish(self, trials: list[Trial]) -> Tuned:
        from catena.flow.tune_report import write_page

        good = ranked(self.config, trials)
        if not good:
            raise DataError(
                f"none of {len(trials)} trials ended well; the last one: {trials[-1].error}",
                hint="Lower the bounds of the learning rate, or look at the runs with `catena log`.",
            )
        best = good[0]
        with self.store.temporary_folder() as folder:
            write_page(folder / "report.html", self.recipe.name, self.step.key, self.config, trials)
            (folder / "trials.jsonl").write_bytes(b"".join(line_of(trial, bare=True) for trial in trials))
            report = self.store.put_report(
                self.store.resolve(best.digest),
                SUITE,
                self._scores(best, trials),
                details=self._details(trials),
                folder=folder,
            )
        report, ref = self._record(report, best)
        self._tag(best)
        shutil.rmtree(self.store.workdir(self.key), ignore_errors=True)
        tuned = self._tuned(report, ref, best, trials)
        self.events.emit("report", path=str(tuned.page))
        return tuned

    def _tuned(self, report: Report, ref: str, best: Trial, trials: Sequence[Trial]) -> Tuned:
        page = self.store.checkout(report) / "report.html"
        return Tuned(report, ref, best, tuple(trials), self._best_recipe(best), self.config, page)

    def _tag(self, best: Trial) -> None:
        if self.config.tag:
            self.store.tag(best.ref, self.config.tag, by=SUITE)

    def _scores(self, best: Trial, trials: Sequence[Trial]) -> dict[str, Score]:
        pairs = zip(self.config.objectives, best.scores, strict=True)
        return {
            objective.metric: Score(value=score, n=len(trials), better=objective.goal) for objective, score in pairs
        }

    def _details(self, trials: Sequence[Trial]) -> dict[str, Any]:
        good = ranked(self.config, trials)
        return {
            "step": self.step.key,
            "stage": self.step.stage.name,
            "search": self.config.model_dump(mode="json", exclude={"jobs", "tag"}),
            "best": dict(good[0].values),
            "front": [trial.number for trial in front(self.config, trials)],
            "trials": [
                {"number": trial.number, "status": trial.status, "values": dict(trial.values), "output": trial.digest}
                for trial in trials
            ],
        }

    def _record(self, report: Report, best: Trial) -> tuple[Report, str]:
        """Put the search into the lineage: from the inputs and the best trial to the report."""
        name = f"{self.step.name}/search"
        inputs = {name: item.digest for name, item in self.inputs.items()} | {"best": best.digest}
        run = Run(
            id=uuid.uuid4().hex[:12],
            group=self.group,
            recipe=self.recipe.name,
            name=name,
            step=self.step.key,
            stage=SUITE,
            status="done",
            config=self.config.model_dump(mode="json"),
            seed=self.step.seed,
            inputs=inputs,
            uses={name: self.refs.get(target, target) for name, target in self.step.use.items()} | {"best": best.ref},
            output=report.digest,
            key=self.key,
            machine=describe_machine(),
            started=self.started,
            ended=now(),
        )
        made = report.model_copy(
            update={"made_by": run.id, "parents": tuple(dict.fromkeys(inputs.values())), "created": now()}
        )
        _, version = self.store.index.finish(run, made, name)
        return self.store.resolve(report.digest, Report), f"{name}@{version}"

    def _best_recipe(self, best: Trial) -> Recipe:
        config = parse(type(self.step.config), with_values(self.step.config, best.values))
        steps = {**self.recipe.steps, self.step.key: replace(self.step, config=config)}
        return replace(self.recipe, steps=steps, text=noted(self.step.key, best.values) + self.recipe.text, tune=None)


def _between(recipe: Recipe, config: TuneConfig) -> list[Step]:
    """Return the tuned step and those between it and what measures, in order."""
    inside = {config.step}
    steps = [recipe.steps[config.step]]
    for step in recipe.until(config.measure or config.step):
        if step.key not in inside and inside & set(step.use.values()):
            inside.add(step.key)
            steps.append(step)
    return steps


def noted(step: str, values: Mapping[str, Choice]) -> str:
    """Return the values as the comments that a recipe's copy begins with."""
    return "".join(f"# --set {step}.{name}={value}\n" for name, value in values.items())


def described(config: TuneConfig, trial: Trial) -> str:
    """Return `val_loss 2.31` of a trial."""
    pairs = zip(config.objectives, trial.scores, strict=True)
    return ", ".join(f"{objective.metric} {score:.5g}" for objective, score in pairs)


def _words(values: Mapping[str, Choice]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())
