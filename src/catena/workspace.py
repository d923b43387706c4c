"""The Python API: what the command line does, a notebook can do.

import catena as c
ws = c.open()
run = ws.run("recipes/python-helper.yaml")
ws.model("python-helper@production").chat("What does shutil.move do?")
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, cast

from catena.core.errors import NotFound, UsageError
from catena.core.events import Listener
from catena.core.generate import GENERATORS, Generator, Message, Request, SamplingParams
from catena.core.types import Artifact, DatasetVersion, ModelVersion, Report, Score
from catena.flow.plan import PlannedStep, make_plan
from catena.flow.recipe import Recipe, load_recipe, one_step
from catena.flow.run import RecipeRun, run_recipe
from catena.hub.datasets import Dataset
from catena.hub.examples import Example, held_out
from catena.hub.lineage import AnswerSource, Graph, answer_sources, trace
from catena.hub.store import FOLDER, Store, init_store, open_store
from catena.hub.versions import put_rows
from catena.settings import Settings, load_settings

if TYPE_CHECKING:
    from catena.flow.tune import Tuned

TRAINED_BY = {"conversation": "train.sft", "document": "train.pretrain", "example": "train.classify"}
"""The stage that trains a model on a dataset, by its shape."""


def open(path: str | Path | None = None, *, create: bool = True) -> Workspace:
    """Open a workspace: `path` (it, or the folder that holds `.catena`), or as the command line would.

    That is: `CATENA_WORKSPACE`, else the nearest `.catena` at or above the current folder, else a new one here;
    settings in `catena.yaml` and the environment count. With `create` off a missing workspace raises `NotFound`.
    """
    settings = load_settings(workspace=None if path is None else Path(path), environment=os.environ)
    return open_with(settings, create=create)


def open_with(settings: Settings, *, create: bool, without_index: bool = False) -> Workspace:
    """Open the workspace that settings name; see `open`, and `open_store` for `without_index`."""
    settings.backends.export(os.environ)
    root = settings.workspace
    if root is not None and (root / "workspace.json").exists():
        return Workspace(open_store(root, without_index=without_index))
    if not create:
        raise NotFound("there is no workspace here", hint="Make one with: catena init")
    made = init_store(root or Path.cwd() / FOLDER, index_url=settings.index, files_url=settings.files)
    return Workspace(made)


@dataclass(frozen=True)
class Compressed:
    """Versions of a model: the run that made them, and the report on each by the version's name."""

    run: RecipeRun
    reports: Mapping[str, Report]


@dataclass(frozen=True)
class Evaluated:
    """A model's scores in tasks; and another one's, with the comparison, where there is one."""

    run: RecipeRun
    report: Report
    other: Report | None = None
    comparison: Report | None = None

    @property
    def scores(self) -> Mapping[str, Score]:
        """The model's scores: `gsm8k/numeric`."""
        return self.report.scores


class Workspace:
    """An open workspace. Also a context manager."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def __enter__(self) -> Workspace:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the database's connections back."""
        self.store.close()

    def recipe(self, recipe: str | Path | Recipe, overrides: Sequence[str] = ()) -> Recipe:
        """Read and check a recipe against this workspace."""
        return recipe if isinstance(recipe, Recipe) else load_recipe(recipe, overrides=overrides, store=self.store)

    def plan(
        self,
        recipe: str | Path | Recipe,
        *,
        overrides: Sequence[str] = (),
        until: str | None = None,
        refresh: bool = False,
    ) -> list[PlannedStep]:
        """Say which steps would run, and why. Nothing runs."""
        return make_plan(self.store, self.recipe(recipe, overrides), until=until, refresh=refresh)

    def run(
        self,
        recipe: str | Path | Recipe,
        *,
        overrides: Sequence[str] = (),
        refresh: bool = False,
        until: str | None = None,
        report: Path | None = None,
        listeners: Iterable[Listener] = (),
        on: str = "local",
    ) -> RecipeRun:
        """Run a recipe; finished steps come from the store. `on` says who works on shards of rows: local or ray.

        Where it has a section `tune`, the search comes first, and its step then has the best values.
        """
        from catena.flow.tune import settled

        listeners = tuple(listeners)
        checked = settled(self.store, self.recipe(recipe, overrides), until, listeners, on)
        return run_recipe(self.store, checked, refresh=refresh, until=until, report=report, listeners=listeners, on=on)

    def tune(
        self,
        recipe: str | Path | Recipe,
        *,
        overrides: Sequence[str] = (),
        listeners: Iterable[Listener] = (),
        on: str = "local",
        **section: Any,
    ) -> Tuned:
        """Search good values for a step of a recipe; `section` are fields of `TuneConfig`, over the recipe's own.

        `on` says where trials run: local (processes, `jobs` at once) or ray. The result's `recipe` has the best values.
        """
        from catena.flow.tune import tune, with_search

        checked = self.recipe(recipe, overrides)
        return tune(self.store, with_search(checked, section), listeners=listeners, on=on)

    def do(
        self,
        stage: str,
        inputs: Mapping[str, str] | None = None,
        config: Mapping[str, Any] | None = None,
        *,
        name: str | None = None,
        seed: int = 0,
        refresh: bool = False,
        on: str = "local",
        listeners: Iterable[Listener] = (),
    ) -> Artifact:
        """Run one stage on stored things; the same as a recipe of one step."""
        recipe = one_step(stage, inputs or {}, config or {}, name=name, seed=seed, store=self.store)
        (key,) = recipe.steps
        return run_recipe(self.store, recipe, refresh=refresh, listeners=listeners, on=on).outputs[key]

    def compress(
        self,
        model: str,
        versions: str | Sequence[str],
        *,
        data: str | None = None,
        test: str | None = None,
        task: str | None = None,
        name: str | None = None,
        overrides: Sequence[str] = (),
        seed: int = 0,
        report: Path | None = None,
        listeners: Iterable[Listener] = (),
    ) -> Compressed:
        """Make smaller versions of a model and measure each: `awq:4`, or several such names.

        `data` is calibrated with, `test` gives perplexity (else the split test of `data`), `task` accuracy;
        `overrides` (`group_size=64`) set further fields of the stages' configs.
        """
        from catena.flow.compression import compression_recipe, versions_of

        made = versions_of([versions] if isinstance(versions, str) else versions, overrides)
        sources = {"data": data, "test": test, "task": task}
        recipe = compression_recipe(self.store, model, made, name=name, seed=seed, **sources)
        run = run_recipe(self.store, recipe, report=report, listeners=listeners)
        reports = {version.name: run.outputs[f"report-{version.name}"] for version in made}
        return Compressed(run, cast("dict[str, Report]", reports))

    def evaluate(
        self,
        model: str,
        tasks: str | Sequence[str],
        *,
        compare: str | None = None,
        judge: str | None = None,
        seed: int = 0,
        report: str | Path | None = None,
        listeners: Iterable[Listener] = (),
        **fields: Any,
    ) -> Evaluated:
        """Measure a model on tasks (names of shipped ones, suites, files), and another one beside it to compare.

        `judge` is a stored model or a URL (`http://host:8000/v1#NAME`); `fields` are those of `TasksConfig`: `limit`,
        `data`, `chat`, `generator` and the rest. `report` is where the page is written, with every sample.
        """
        from catena.flow.evaluation import evaluation_recipe
        from catena.flow.evaluation_page import write_page

        named = [tasks] if isinstance(tasks, str) else list(tasks)
        recipe = evaluation_recipe(self.store, model, named, compare=compare, judge=judge, config=fields, seed=seed)
        run = run_recipe(self.store, recipe, listeners=listeners)
        found = cast("dict[str, Report]", run.outputs)
        made = Evaluated(run, found["scores"], found.get("other"), found.get("comparison"))
        if report is not None:
            write_page(self.store, made.report, Path(report), made.other, made.comparison)
        return made

    def resolve(self, ref: str) -> Artifact:
        """Return the artifact of a reference: `name`, `name@tag`, `name@version`, or a digest prefix."""
        return self.store.resolve(ref)

    def dataset(self, ref: str) -> Dataset:
        """Open a stored dataset: iterate `samples()`, look at `rejects()`."""
        return self.store.open_dataset(self.store.resolve(ref, DatasetVersion))

    def model(self, ref: str) -> ModelHandle:
        """Return a stored model, ready to be asked."""
        return ModelHandle(self.store, self.store.resolve(ref, ModelVersion))

    def lineage(self, ref: str, *, up: bool = True, down: bool = True) -> Graph:
        """Return what an artifact was made from and what was made from it."""
        return trace(self.store, self.store.resolve(ref), up=up, down=down)

    def tag(self, ref: str, tag: str) -> Artifact:
        """Put a tag on a version of a name."""
        return self.store.tag(ref, tag, by="python")


class ModelHandle:
    """A stored model and, from the first question on, the native engine over it. Also a context manager."""

    def __init__(self, store: Store, version: ModelVersion) -> None:
        self.store, self.version = store, version
        self._generator: Generator | None = None
        self._held = ExitStack()
        self._locked = False

    def __enter__(self) -> ModelHandle:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def folder(self) -> Path:
        """A verified folder that plain `transformers` loads. Read it only; `catena gc` spares it until `close`."""
        if not self._locked:
            self._held.enter_context(self.store.lock("gc", shared=True))
            self._locked = True
        return self.store.checkout(self.version)

    @property
    def generator(self) -> Generator:
        """The native engine over this model."""
        if self._generator is None:
            self._generator = cast("Generator", GENERATORS.load("native")(self.folder))
        return self._generator

    def chat(self, text: str, **params: Any) -> str:
        """Answer one message; `params` are fields of `SamplingParams`."""
        return self.generate([(Message("user", text),)], **params)[0]

    def generate(self, prompts: Sequence[str | Sequence[Message]], **params: Any) -> list[str]:
        """Answer many prompts in one batch, in their order."""
        sampling = SamplingParams(**params)
        requests = [Request(str(number), prompt, sampling) for number, prompt in enumerate(prompts)]
        answers = {completion.request_id: completion.text for completion in self.generator.generate(requests)}
        return [answers[request.id] for request in requests]

    def train(
        self,
        dataset: str | DatasetVersion | Dataset | Iterable[Mapping[str, Any]],
        *,
        epochs: float | None = None,
        stage: str = "",
        name: str | None = None,
        seed: int = 0,
        listeners: Iterable[Listener] = (),
        **fields: Any,
    ) -> ModelHandle:
        """Train on a stored dataset, or on rows, and return the new model; this one stays as it is.

        The dataset's shape says how, unless `stage` does: conversations `train.sft`, documents `train.pretrain`,
        examples `train.classify`. `fields` are fields of that stage's config: `batch_size`, `optimizer`, and the rest.
        """
        data = self._dataset(dataset)
        chosen = stage or TRAINED_BY.get(data.shape, "")
        if not chosen:
            raise UsageError(f"nothing is trained on data of the shape {data.shape!r} unless `stage` says what")
        if epochs is not None and chosen == "train.sft":
            if "phases" in fields:
                raise UsageError("phases have epochs of their own", hint="Give epochs or phases, not both.")
            fields["phases"] = [{"epochs": epochs}]
        elif epochs is not None:
            fields["epochs"] = epochs
        source = "tokenizer" if self.version.form == "tokenizer" else "base"
        inputs = {source: self.version.digest, "data": data.digest}
        made = Workspace(self.store).do(chosen, inputs, fields, name=name, seed=seed, listeners=listeners)
        return ModelHandle(self.store, cast("ModelVersion", made))

    def _dataset(self, dataset: str | DatasetVersion | Dataset | Iterable[Mapping[str, Any]]) -> DatasetVersion:
        """Return the dataset that is meant; rows are stored as one, in the split `train` where they name none."""
        if isinstance(dataset, str):
            return self.store.resolve(dataset, DatasetVersion)
        if isinstance(dataset, DatasetVersion | Dataset):
            return dataset if isinstance(dataset, DatasetVersion) else dataset.version
        return put_rows(self.store, dataset, split="train")

    def compress(
        self, method: str, bits: int | None = None, *, data: str | None = None, name: str | None = None, **fields: Any
    ) -> ModelHandle:
        """Make a smaller model and return it; this one stays as it is.

        `method` and `bits` as in `catena compress`; `fields` are further fields of the stage's config.
        """
        from catena.flow.compression import version_of

        version = version_of(f"{method}:{bits}" if bits else method)
        inputs = {"model": self.version.digest, **({"data": data} if data else {})}
        made = Workspace(self.store).do(version.stage, inputs, {**version.config, **fields}, name=name)
        return ModelHandle(self.store, cast("ModelVersion", made))

    def evaluate(self, tasks: str | Sequence[str], **options: Any) -> Evaluated:
        """Measure this model on tasks; options as in `Workspace.evaluate`."""
        return Workspace(self.store).evaluate(self.version.digest, tasks, **options)

    def sources(self, answer: str, limit: int = 3) -> list[AnswerSource]:
        """Say which training samples, and so which pages, an answer was learnt from."""
        return answer_sources(self.store, self.version, answer, limit=limit)

    def examples(self, count: int = 3) -> list[Example]:
        """Return questions that were kept back when it was trained, and their answers; see `catena chat --examples`."""
        return held_out(self.store, self.version, count)

    def close(self) -> None:
        """End the engine, and let `catena gc` have the folder."""
        if self._generator is not None:
            self._generator.close()
            self._generator = None
        self._held.close()
        self._locked = False
