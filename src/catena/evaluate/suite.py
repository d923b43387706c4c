"""Evaluation on tasks: a model asked everything that task files ask, with intervals, every sample kept.

    task files -> rows -> kinds.perform (through the cache of answers) -> measures -> report

The report has `samples.jsonl` (each question, answer and score), `documents.jsonl` (texts that were foretold) and
`evidence.npz` (the numbers that scores are sums of, so that two models can be compared question by question).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import orjson
from pydantic import Field, ValidationInfo, field_validator, model_validator

from catena.core.config import Config
from catena.core.digest import digest_of
from catena.core.errors import CatenaError, DataError, UsageError
from catena.core.generate import GENERATORS, SCORERS
from catena.core.sample import sample_id
from catena.core.stage import Context, code_digest, stage
from catena.core.types import DatasetVersion, ModelVersion, Report, Score
from catena.evaluate.ask import Answers, Asker
from catena.evaluate.choice import known_generator
from catena.evaluate.kinds import Run, perform
from catena.evaluate.measures import OF_PAIRS, Array, measure_of
from catena.evaluate.outcome import Outcome
from catena.evaluate.perplexity import start_token
from catena.evaluate.rows import Row, folder_content, read_rows
from catena.evaluate.sandbox import Sandbox
from catena.evaluate.stats import Interval, bootstrap_sums, wilson
from catena.evaluate.task import Prompted, Task
from catena.evaluate.taskfile import Loaded, data_of, load_tasks
from catena.evaluate.template import Template

SUITE = "tasks"
SAMPLES, DOCUMENTS, EVIDENCE = "samples.jsonl", "documents.jsonl", "evidence.npz"
TEMPLATES = (
    *("prompt", "answer", "choices", "correct", "text", "counted", "program", "against"),
    *("reference", "question", "group", "cluster"),
)
SCALE = {"bleu": "of 100", "chrf": "of 100"}


class JudgeConfig(Config):
    """Who judges, where a task of the kind `judge` asks for it and no stored model is given as the input `judge`."""

    generator: str = "openai"
    """A generator by its name."""
    engine: dict[str, Any] = Field(default_factory=dict)
    """Its options: `url` and `model`."""
    content: str = ""
    """Digest of the files of a judge whose `url` is a folder; filled in here."""

    @field_validator("generator")
    @classmethod
    def _answers(cls, name: str) -> str:
        return known_generator(name)

    @model_validator(mode="after")
    def _filled_in(self) -> JudgeConfig:
        place = str(self.engine.get("url", ""))
        there = bool(place) and Path(place).is_dir()
        self.__dict__["content"] = digest_of(folder_content(Path(place))) if there else ""
        return self


class TasksConfig(Config):
    """What a model is asked, and how."""

    data: str = ""
    """Folder of the files of shipped tasks."""
    tasks: tuple[str, ...] = Field(min_length=1)
    """Names of shipped tasks and suites, and task files."""
    limit: int | None = Field(default=None, ge=1)
    """Rows of each task, chosen by hash; by default all."""
    chat: bool | None = None
    """Ask through the model's chat template; by default as each task says."""
    generator: str = "native"
    """Who answers: the native engine, or another one by its name (vllm, llama.cpp, openai)."""
    engine: dict[str, Any] = Field(default_factory=dict)
    """Options of that engine."""
    judge: JudgeConfig | None = None
    """Who judges."""
    uncontained_code: bool = False
    """Run programs of the model even where this machine cannot contain them."""
    datasets: dict[str, str] = Field(default_factory=dict)
    """Digest of each stored dataset that a task names; those that are not given are filled in before the step."""
    content: dict[str, str] = Field(default_factory=dict)
    """Digest of each task with its files; filled in here."""
    _scorers: tuple[str, ...] = ()
    """Scorers of plugins that tasks name."""

    def modules(self) -> tuple[str, ...]:
        """Return where generator, judge and scorers live: a plugin's too."""
        generators = [self.generator, *([self.judge.generator] if self.judge else [])]
        places = [*map(GENERATORS.table().get, generators), *map(SCORERS.table().get, self._scorers)]
        return tuple(dict.fromkeys(str(place).partition(":")[0] for place in places))

    def pinned(self, digest: Callable[[str], str], inputs: Collection[str]) -> Self:
        """Return these values with the datasets that tasks name; the input `data` stands for every one of them."""
        if "data" in inputs:
            return self
        places = [place.dataset for one in load_tasks(self.tasks, self.data) for place in data_of(one.task)]
        datasets = {name: self.datasets.get(name) or digest(name) for name in places if name is not None}
        return self.model_copy(update={"datasets": datasets})

    @field_validator("generator")
    @classmethod
    def _answers(cls, name: str) -> str:
        return known_generator(name)

    @field_validator("tasks")
    @classmethod
    def _load(cls, names: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        try:
            load_tasks(names, info.data.get("data", ""))
        except CatenaError as error:
            raise ValueError(f"{error.message}. {error.hint}".rstrip(". ")) from error
        return names

    @model_validator(mode="after")
    def _filled_in(self) -> TasksConfig:
        loaded = load_tasks(self.tasks, self.data)
        self.__dict__["content"] = {one.task.name: one.digest for one in loaded}
        scores = dict.fromkeys(name for one in loaded for name in getattr(one.task, "score", ()))
        self._scorers = tuple(name for name in scores if name not in OF_PAIRS and name in SCORERS)
        return self


@dataclass(frozen=True)
class Measured:
    """A task with what it gave."""

    loaded: Loaded
    rows: Sequence[Row]
    outcome: Outcome
    clusters: Sequence[str] | None
    groups: Sequence[str] | None


@stage("evaluate.tasks", uses=("catena.infer.engine",))
def tasks(
    ctx: Context,
    cfg: TasksConfig,
    *,
    model: ModelVersion,
    data: DatasetVersion | None = None,
    judge: ModelVersion | None = None,
) -> Report:
    """Measure a model on tasks: written answers, choices, programs, texts foretold, a judge's word."""
    loaded = load_tasks(cfg.tasks, cfg.data)
    refuse_changed(cfg, loaded)
    rows = {one.task.name: rows_of(ctx, cfg, one, data) for one in loaded}
    started = time.monotonic()
    with ExitStack() as stack:
        asker = opened(ctx, model, cfg.generator, cfg.engine)
        stack.callback(asker.close)
        judging = judge_of(ctx, cfg, judge, loaded)
        if judging is not None:
            stack.callback(judging.close)
        found = [measured(ctx, cfg, one, rows[one.task.name], (asker, judging)) for one in loaded]
        requests = asker.asked + (judging.asked if judging is not None else 0)
        known, cut = asker.answers.found, asker.cut
    ctx.events.metric("requests", requests)
    ctx.events.metric("answers_known_before", known)
    ctx.events.metric("seconds_of_asking", round(time.monotonic() - started, 3))
    scores = {name: score for one in found for name, score in scores_of(one, ctx.seed).items()}
    notes = {one.loaded.task.name: one.outcome.notes for one in found if one.outcome.notes}
    folder = ctx.workdir / "report"
    folder.mkdir(exist_ok=True)
    write_files(folder, found)
    return ctx.store.put_report(
        model,
        SUITE,
        scores,
        details={
            "data": digest_of(sorted(cfg.content.items())),
            "config": measured_by(cfg, ctx.seed, data, judge),
            "generator": cfg.generator,
            "tasks": {one.loaded.task.name: about(one) for one in found},
            "questions": sum(len(one.outcome.lines) for one in found),
            "prompts_cut_at_context": cut,
            "notes": notes,
            "interval": "95 %: Wilson where an answer is right or wrong by itself, else bootstrap of rows or clusters",
        },
        folder=folder,
    )


def refuse_changed(cfg: TasksConfig, loaded: Sequence[Loaded]) -> None:
    """Raise `DataError` for tasks that are not those that were checked: the step would be stored under the old ones."""
    now = {one.task.name: one.digest for one in loaded}
    changed = sorted(name for name in now | cfg.content if now.get(name) != cfg.content.get(name))
    if changed:
        raise DataError(
            f"changed while the run was waiting: {', '.join(changed)}", hint="Run it again: what was finished is kept."
        )


def measured_by(cfg: TasksConfig, seed: int, data: DatasetVersion | None, judge: ModelVersion | None) -> dict[str, Any]:
    """Return what decides the scores beside the model."""
    values = cfg.model_dump(mode="json", include={"limit", "chat", "judge", "datasets"})
    given = {"data": data.digest if data else None, "judge_model": judge.digest if judge else None}
    return {**values, **given, "seed": seed, "content": dict(cfg.content)}


def about(one: Measured) -> dict[str, Any]:
    """Return what a report says of a task."""
    task = one.loaded.task
    return {
        "kind": task.kind,
        "digest": one.loaded.digest,
        "rows": len(one.outcome.lines),
        "description": task.description,
        "clusters": None if one.clusters is None else len(set(one.clusters)),
        "main": f"{task.name}/{next(iter(one.outcome.evidence))}",
    }


def rows_of(ctx: Context, cfg: TasksConfig, loaded: Loaded, data: DatasetVersion | None) -> dict[str, list[Row]]:
    """Return the rows of a task and those of its examples, checked against its templates; at most `limit` to ask."""
    pools = []
    for place in data_of(loaded.task):
        given = data if place.dataset is not None else None
        if place.dataset is not None and given is None:
            pinned = cfg.datasets.get(place.dataset, "")
            given = ctx.store.resolve(pinned or place.dataset, DatasetVersion)
        pools.append(read_rows(place, loaded.folders, ctx.store, given))
    check_templates(loaded.task, pools[0])
    asked = pools[0]
    if cfg.limit is not None and len(asked) > cfg.limit:
        keep = set(sorted((row.id for row in asked), key=lambda name: sample_id(ctx.seed, name))[: cfg.limit])
        asked = [row for row in asked if row.id in keep]
    return {"asked": asked, "pool": pools[-1]}


def check_templates(task: Task, rows: Sequence[Row]) -> None:
    """Raise `DataError` where a template names a field that no row has, before anything is asked."""
    fields = {name for row in rows for name in row.values} | {"completion"}
    for name in TEMPLATES:
        value = getattr(task, name, None) or ()
        for text in (value,) if isinstance(value, str) else value:
            Template(text).check(fields, f"{task.name}, {name}")


def opened(ctx: Context, model: ModelVersion, generator: str, engine: Mapping[str, Any]) -> Asker:
    """Open a model behind its cache of answers; the engine's code and options are part of its name."""
    module = GENERATORS.table()[generator].partition(":")[0]
    how = digest_of([generator, dict(engine), code_digest(module, "catena.evaluate.ask")])[:16]
    folder = ctx.store.checkout(model)
    answers = Answers(ctx.store.root / "answers" / f"{model.digest[:32]}-{how}.jsonl")
    context = model.context if generator == "native" else 0
    native = generator == "native"
    start = start_token(folder)
    return Asker(
        ctx.generator(model, generator, **engine), answers, ctx.events, context=context, start=start, primes=native
    )


def judge_of(ctx: Context, cfg: TasksConfig, judge: ModelVersion | None, loaded: Sequence[Loaded]) -> Asker | None:
    """Open the judge, where a task asks for one: a stored model, or who the config names."""
    if not any(one.task.kind == "judge" for one in loaded):
        return None
    if judge is not None:
        return opened(ctx, judge, "native", {})
    if cfg.judge is None:
        raise UsageError(
            "a task needs a judge", hint="Give a stored model (the input `judge`), or `judge` with url and model."
        )
    module = GENERATORS.table()[cfg.judge.generator].partition(":")[0]
    how = digest_of([cfg.judge.model_dump(mode="json"), code_digest(module, "catena.evaluate.ask")])[:32]
    answers = Answers(ctx.store.root / "answers" / f"judge-{how}.jsonl")
    options = dict(cfg.judge.engine)
    place = options.pop("url", "")  # in the place of a folder: there is no tokenizer of the judge here
    return Asker(GENERATORS.load(cfg.judge.generator)(place or Path(), **options), answers, ctx.events)


def measured(
    ctx: Context, cfg: TasksConfig, loaded: Loaded, rows: Mapping[str, list[Row]], askers: tuple[Asker, Asker | None]
) -> Measured:
    """Perform one task."""
    task, asked = loaded.task, rows["asked"]
    chat = isinstance(task, Prompted) and (task.chat if cfg.chat is None else cfg.chat)
    own = len(data_of(task)) == 1
    run = Run(askers[0], ctx.seed, rows["pool"], own, chat, askers[1], Sandbox(cfg.uncontained_code), cfg.limit)
    outcome = perform(task, asked, run)
    if task.kind == "lm_eval":
        names = [str(line["group"]) for line in outcome.lines]
        return Measured(loaded, asked, outcome, None, names if len(set(names)) > 1 else None)
    groups = _labels(task.group, asked)
    for line, group in zip(outcome.lines, groups or (), strict=bool(groups)):
        line["group"] = group
    return Measured(loaded, asked, outcome, _labels(task.cluster, asked), groups)


def _labels(text: str, rows: Sequence[Row]) -> list[str] | None:
    if not text:
        return None
    template = Template(text)
    return [template.text_of(row.values, row.where) for row in rows]


def scores_of(one: Measured, seed: int) -> dict[str, Score]:
    """Return the scores of a task, and those of its groups."""
    name = one.loaded.task.name
    found = {
        f"{name}/{measure}": score_of(measure, evidence, one.clusters, seed)
        for measure, evidence in one.outcome.evidence.items()
    }
    if one.groups is None:
        return found
    groups = np.asarray(one.groups, dtype=object).astype(str)
    for measure, evidence in list(one.outcome.evidence.items())[:1]:
        for group in sorted(set(one.groups)):
            mine = groups == group
            clusters = [label for label, its in zip(one.clusters, mine, strict=True) if its] if one.clusters else None
            found[f"{name}/{measure}/{group}"] = score_of(measure, evidence[mine], clusters, seed)
    return found


def score_of(name: str, evidence: Array, clusters: Sequence[str] | None, seed: int) -> Score:
    """Return a score with its interval."""
    measure = measure_of(name)
    interval = interval_of(name, evidence, clusters, seed)
    return Score(
        value=round(interval.value, 6) if measure.better == "higher" else round(interval.value, 10),
        low=round(interval.low, 6),
        high=round(interval.high, 6),
        n=len(evidence),
        unit=measure.unit or SCALE.get(name, ""),
        better=measure.better,
    )


def interval_of(name: str, evidence: Array, clusters: Sequence[str] | None, seed: int) -> Interval:
    """Return Wilson's interval for what is right or wrong by itself, else a bootstrap."""
    simple = evidence.shape[1] == 2 and bool((evidence[:, 1] == 1).all() and np.isin(evidence[:, 0], (0.0, 1.0)).all())
    if simple and clusters is None:
        return wilson(int(evidence[:, 0].sum()), len(evidence))
    return bootstrap_sums(evidence, measure_of(name).finish, seed=seed, clusters=clusters)


def write_files(folder: Path, found: Sequence[Measured]) -> None:
    """Write every line, and the evidence that scores are sums of."""
    texts: dict[str, list[bytes]] = {SAMPLES: [], DOCUMENTS: []}
    arrays: dict[str, Any] = {}
    for one in found:
        name = one.loaded.task.name
        texts[DOCUMENTS if one.loaded.task.kind == "perplexity" else SAMPLES] += [
            orjson.dumps(line, default=str) + b"\n" for line in one.outcome.lines
        ]
        arrays |= {f"{name}/{measure}": evidence for measure, evidence in one.outcome.evidence.items()}
        arrays[f"{name}#ids"] = np.asarray([line["id"] for line in one.outcome.lines])
        if one.clusters is not None:
            arrays[f"{name}#clusters"] = np.asarray([str(label) for label in one.clusters])
    for file, lines in texts.items():
        if lines:
            (folder / file).write_bytes(b"".join(lines))
    np.savez_compressed(folder / EVIDENCE, **arrays)
