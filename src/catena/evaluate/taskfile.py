"""Task files: found by name or path, checked whole, with the digest of all that they measure.

gsm8k            a shipped task (`tasks/`), or a shipped suite of several
./mine.yaml      a file, its data beside it
lm_eval:NAME     a task of lm-evaluation-harness (see `harness`)
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from catena.core.config import check
from catena.core.digest import digest_of
from catena.core.errors import NotFound, TaskError, did_you_mean
from catena.core.source import Source, parse_source, read_source
from catena.evaluate.rows import content_of, folder_content
from catena.evaluate.task import KINDS, DataConfig, HarnessTask, Suite, Task

SHIPPED = Path(__file__).parent / "tasks"
HARNESS = "lm_eval:"
NOTHING_RAN = "Nothing was run. docs/evaluation.md tells what a task has."


@dataclass(frozen=True)
class Loaded:
    """A checked task: where its files are looked for, and what decides its scores."""

    task: Task
    folders: tuple[Path, ...]
    digest: str
    """Of the task's values and the bytes of its files."""


def shipped() -> dict[str, Path]:
    """Return every shipped task and suite by its name."""
    return {path.stem: path for path in sorted(SHIPPED.glob("*.yaml"))}


def load_tasks(names: Sequence[str], data: str = "") -> list[Loaded]:
    """Load tasks and the tasks of suites, each once, in their order; `data` is the folder of the files of shipped ones.

    Raises `NotFound` for a name or a file that is not there, and `TaskError` for every mistake in a task file at once.
    """
    found: dict[str, Loaded] = {}
    for name in names:
        for loaded in _load(name, data, ()):
            if loaded.task.name in found and found[loaded.task.name].digest != loaded.digest:
                raise TaskError(f"two different tasks are called {loaded.task.name!r}", hint="Rename one of them.")
            found[loaded.task.name] = loaded
    return list(found.values())


def _load(name: str, data: str, inside: tuple[Path, ...]) -> Iterator[Loaded]:
    if name.startswith(HARNESS):
        yield named_in_harness(name.removeprefix(HARNESS))
        return
    path = _path(name, inside[-1].parent if inside else Path())
    if path in inside:
        raise TaskError(f"the suite {path} has itself in it", hint=NOTHING_RAN)
    source = read_source(path, noun="task", wrong=TaskError)
    if isinstance(source.values, dict) and "suite" in source.values:
        suite = checked(source, Suite)
        for one in suite.suite:
            yield from _load(one, data, (*inside, path))
        return
    task = check_task(source)
    own = path.parent if path.parent != SHIPPED else None
    folders = tuple(folder for folder in (Path(data) if data else None, own) if folder is not None)
    hint = f"The files of {task.name} come from {task.source}" if task.source else ""
    contents = [content_of(one, folders, hint) for one in data_of(task)]
    if isinstance(task, HarnessTask) and task.include:
        contents.append(folder_content(Path(task.include)))
    what = task.model_dump(mode="json", exclude={"description", "source", "license"})
    yield Loaded(task, folders, digest_of({"task": what, "data": contents}))


def named_in_harness(name: str) -> Loaded:
    """Return the task that stands for one of lm-evaluation-harness."""
    own = re.sub(r"[^A-Za-z0-9._-]", "-", name) or "lm_eval"
    task = HarnessTask(name=own, kind="lm_eval", task=name, description="a task of lm-evaluation-harness")
    return Loaded(task, (), digest_of([HARNESS, name]))


def _path(name: str, folder: Path) -> Path:
    known = shipped()
    if name in known:
        return known[name]
    path = Path(name) if Path(name).exists() else folder / name
    if path.suffix in (".yaml", ".yml") or path.is_file():
        return path
    raise NotFound(f"there is no task {name!r}", hint=f"{did_you_mean(name, known)} Or give a task file: ./{name}.yaml")


def data_of(task: Task) -> list[DataConfig]:
    """Return every place that a task reads rows from: its own first, then that of its examples."""
    few_shot = getattr(task, "few_shot", None)
    return [task.data, *([few_shot.data] if few_shot is not None and few_shot.data is not None else [])]


def task_from(text: str, name: str = "task.yaml") -> Task:
    """Return the task of a YAML text; raises one `TaskError` with every mistake and its line."""
    return check_task(parse_source(text, name, TaskError))


def check_task(source: Source) -> Task:
    """Check a parsed task file; raises one `TaskError` with every mistake and its line."""
    if not isinstance(source.values, dict):
        raise TaskError(f"{source.name}: a task is a mapping with `name`, `kind` and `data`", hint=NOTHING_RAN)
    kind = source.values.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        what = f"there is no kind {kind!r}. {did_you_mean(str(kind), KINDS)}" if kind else "it has no `kind`"
        known = "" if kind else f" Known: {', '.join(KINDS)}."
        raise _wrong([f"{source.where(('kind',))}: {what}{known}"])
    found: Any = checked(source, KINDS[kind])
    task: Task = found
    return task


def checked(source: Source, config: type[Any]) -> Any:
    """Return the config that a file holds; raises one `TaskError` with every mistake and its line."""
    made, problems = check(config, source.values)
    if made is not None:
        return made
    raise _wrong([f"{source.where(problem.path)}: {problem.line()}" for problem in problems])


def _wrong(problems: Sequence[str]) -> TaskError:
    text = problems[0] if len(problems) == 1 else f"{len(problems)} problems:\n  " + "\n  ".join(problems)
    return TaskError(text, hint=NOTHING_RAN, problems=problems)


def described() -> list[dict[str, str]]:
    """Return what `--tasks list` shows of each shipped task and suite."""
    rows = []
    for name, path in shipped().items():
        source = read_source(path, noun="task", wrong=TaskError)
        if "suite" in source.values:
            suite: Suite = checked(source, Suite)
            row = {"kind": "suite", "language": "", "needs": "", "description": f"{', '.join(suite.suite)}"}
        else:
            task = check_task(source)
            needs = ", ".join(dict.fromkeys(one.file for one in data_of(task) if one.file))
            row = {"kind": task.kind, "language": task.language, "needs": needs, "description": task.description}
        rows.append({"name": name, **row})
    return rows
