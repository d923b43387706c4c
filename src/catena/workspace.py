"""The Python API: what the command line does, a notebook can do.

import catena as c
ws = c.open()
run = ws.run("recipes/python-helper.yaml")
ws.model("python-helper@production").chat("What does json.loads do?")
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, cast

from catena.core.config import Config, check
from catena.core.errors import NotFound, UsageError
from catena.core.events import Listener
from catena.core.generate import GENERATORS, Generator, Message, Request, SamplingParams
from catena.core.stage import stage_of
from catena.core.types import Artifact, ModelVersion
from catena.flow.plan import PlannedStep, make_plan
from catena.flow.recipe import Recipe, check_recipe, load_recipe
from catena.flow.run import RecipeRun, run_recipe
from catena.flow.source import Source
from catena.flow.table import STAGES
from catena.hub.datasets import Dataset
from catena.hub.lineage import AnswerSource, Graph, answer_sources, trace
from catena.hub.store import FOLDER, Store, find_workspace, init_store, open_store


def open(path: str | Path | None = None, *, create: bool = True, index_url: str = "", files_url: str = "") -> Workspace:
    """Open a workspace: `path`, or the nearest `.catena` at or above the current folder, or a new one here.

    With `create` off a missing workspace raises `NotFound`.
    """
    root = Path(path) if path else find_workspace(Path.cwd())
    if root is not None and (root / "workspace.json").exists():
        return Workspace(open_store(root))
    if not create:
        raise NotFound("there is no workspace here", hint="Make one with: catena init")
    return Workspace(init_store(root or Path.cwd() / FOLDER, index_url=index_url, files_url=files_url))


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
    ) -> RecipeRun:
        """Run a recipe; finished steps come from the store."""
        return run_recipe(
            self.store, self.recipe(recipe, overrides), refresh=refresh, until=until, report=report, listeners=listeners
        )

    def do(
        self,
        stage: str,
        inputs: Mapping[str, str] | None = None,
        config: Mapping[str, Any] | None = None,
        *,
        name: str | None = None,
        seed: int = 0,
        listeners: Iterable[Listener] = (),
    ) -> Artifact:
        """Run one stage on stored things; the same as a recipe of one step."""
        key = stage.rpartition(".")[2]
        step: dict[str, Any] = {"stage": stage, "use": dict(inputs or {}), "with": dict(config or {})}
        if name:
            step["name"] = name
        source = Source(f"catena do {stage}", "", {"name": "do", "seed": seed, "steps": {key: step}})
        return run_recipe(self.store, check_recipe(source, store=self.store), listeners=listeners).outputs[key]

    def config_of(self, stage: str, values: Mapping[str, Any]) -> Config:
        """Check a config for a stage; raises `UsageError` with what is wrong."""
        config, problems = check(stage_of(STAGES.load(stage)).config, values)
        if config is None:
            raise UsageError("; ".join(problem.line() for problem in problems))
        return config

    def resolve(self, ref: str) -> Artifact:
        """Return the artifact of a reference: `name`, `name@tag`, `name@version`, or a digest prefix."""
        return self.store.resolve(ref)

    def dataset(self, ref: str) -> Dataset:
        """Open a stored dataset: iterate `samples()`, look at `rejects()`."""
        from catena.core.types import DatasetVersion

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

    def __enter__(self) -> ModelHandle:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def folder(self) -> Path:
        """A verified folder that plain `transformers` loads. Read it only."""
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

    def sources(self, answer: str, limit: int = 3) -> list[AnswerSource]:
        """Say which training samples, and so which pages, an answer was learnt from."""
        return answer_sources(self.store, self.version, answer, limit=limit)

    def close(self) -> None:
        """End the engine."""
        if self._generator is not None:
            self._generator.close()
            self._generator = None
