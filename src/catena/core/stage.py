"""Stages: plain functions from artifacts to an artifact, with a typed config.

    @stage("data.dedup")
    def dedup(ctx: Context, cfg: DedupConfig, *, source: DatasetVersion) -> DatasetVersion: ...

The signature is the interface: from it come the check of a recipe's edges, the help of the command line, and lineage.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import platform
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, Union, get_args, get_origin, get_type_hints

from catena.core.config import Config
from catena.core.digest import digest_of, sha256
from catena.core.events import Events, Progress
from catena.core.generate import GENERATORS, Generator
from catena.core.types import KINDS, ArtifactBase, ModelVersion

if TYPE_CHECKING:
    from catena.hub.store import Store

Function = TypeVar("Function", bound=Callable[..., ArtifactBase])

DATA_FILES = frozenset({".yaml", ".txt", ".tsv", ".json", ".jinja", ".c"})
# Packages whose code carries artifacts about and does not decide what is in them: a change there re-runs nothing.
CARRIERS = ("catena.core", "catena.hub", "catena.flow", "catena.cli")
# Of these, what does decide: ids of samples, and how answers are sampled by default.
COUNTED = frozenset({"catena.core.sample", "catena.core.digest", "catena.core.generate"})


@dataclass(frozen=True, slots=True)
class Context:
    """All that a stage is given beside its config and inputs. Nothing else is global."""

    store: Store
    workdir: Path
    """A folder of this stage's own. It survives a kill and is there again when the same work goes on."""
    seed: int
    events: Events
    name: str = ""
    """The name that the output will get; `store.latest(name)` is what was made under it before."""
    executor: str = "local"
    """Who works on shards of rows: "local" processes or "ray". The result is the same."""
    workers: int = 0
    """How many at once; 0 for one per processor."""

    def progress(self, label: str, total: int | None = None, unit: str = "rows", *, done: int = 0) -> Progress:
        """Start a progress line with rate and time left."""
        return self.events.progress(label, total, unit, done=done)

    def generator(self, model: ModelVersion, spec: str = "native", /, **options: Any) -> Generator:
        """Open a generator over a stored model, by registry name."""
        opened: Generator = GENERATORS.load(spec)(self.store.checkout(model), **options)
        return opened


@dataclass(frozen=True, slots=True)
class Stage:
    """What `@stage` reads off a function."""

    name: str
    function: Callable[..., ArtifactBase]
    config: type[Config]
    inputs: Mapping[str, tuple[type[ArtifactBase], ...]]
    """Input name to the artifact classes it takes."""
    optional: frozenset[str]
    output: tuple[type[ArtifactBase], ...]
    volatile: bool
    """Its result depends on the world outside (a crawl): cached all the same, made again with `--refresh`."""
    uses: tuple[str, ...] = ()
    """Modules that it reaches by registry name, so that a change of their code counts as a change of its own."""
    summary: str = field(default="")

    def code(self, config: Config) -> str:
        """Return the digest of the source that decides this stage's output under a config."""
        return code_digest(self.function.__module__, *self.uses, *config.modules())


def stage(name: str, *, volatile: bool = False, uses: tuple[str, ...] = ()) -> Callable[[Function], Function]:
    """Mark a function `(ctx, cfg, *, inputs...) -> artifact` as a stage; it stays an ordinary function."""

    def mark(function: Function) -> Function:
        function.__dict__["stage"] = (name, volatile, uses)
        return function

    return mark


@cache
def stage_of(function: Callable[..., ArtifactBase]) -> Stage:
    """Read a stage off a marked function's signature; raises `TypeError` where the signature is not a stage's."""
    if "stage" not in function.__dict__:
        raise TypeError(f"{function.__module__}.{function.__qualname__} is not marked with @stage")
    name, volatile, uses = function.__dict__["stage"]
    hints = get_type_hints(function)
    parameters = list(inspect.signature(function).parameters.values())
    if len(parameters) < 2 or not issubclass(hints.get(parameters[1].name, object), Config):
        raise TypeError(f"stage {name!r}: the first two parameters must be (ctx: Context, cfg: <a Config>)")
    inputs = {parameter.name: _artifact_classes(name, hints[parameter.name]) for parameter in parameters[2:]}
    return Stage(
        name=name,
        function=function,
        config=hints[parameters[1].name],
        inputs=inputs,
        optional=frozenset(parameter.name for parameter in parameters[2:] if parameter.default is not parameter.empty),
        output=_artifact_classes(name, hints["return"]),
        volatile=volatile,
        uses=uses,
        summary=(inspect.getdoc(function) or "").partition("\n")[0],
    )


def _artifact_classes(name: str, annotation: Any) -> tuple[type[ArtifactBase], ...]:
    options = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    classes = tuple(option for option in options if option is not type(None))
    if not all(isinstance(option, type) and option in KINDS.values() for option in classes):
        raise TypeError(f"stage {name!r}: {annotation} is not an artifact class")
    return classes


@cache
def code_digest(*modules: str) -> str:
    """Return one digest of the source of these modules and of all that they import from their own packages.

    Function-level imports count too, and so do the data files in a package's folder and below (presets, word lists,
    phrasings, kernels in C): they decide what comes out as much as code does. So do the versions of the other packages
    that are imported, and that of Python. `CARRIERS` are left out: see there.
    """
    found: dict[str, str] = {"python": ".".join(platform.python_version_tuple()[:2])}
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        if name in found or name == "catena" or (name.startswith(CARRIERS) and name not in COUNTED):
            continue
        source = _source(name)
        if source is None:
            continue
        found[name] = sha256(source.read_bytes())
        found.update({str(path): sha256(path.read_bytes()) for path in _data_files(source.parent)})
        own, others = _imports(name, source)
        waiting.extend(own)
        found.update({package: _version(package) for package in others})
    # By what was found and not by where: the same code in another folder is the same code.
    return digest_of(sorted(found.values()))


@cache
def _source(module: str) -> Path | None:
    """Return a module's file. Only its top-level package is asked for: to find a submodule would import its parents."""
    top, *parts = module.split(".")
    spec = importlib.util.find_spec(top)
    if spec is None or spec.origin is None:
        return None
    if not parts:
        return Path(spec.origin) if spec.origin.endswith(".py") else None
    for root in spec.submodule_search_locations or ():
        for path in (Path(root, *parts).with_suffix(".py"), Path(root, *parts, "__init__.py")):
            if path.is_file():
                return path
    return None


@cache
def _data_files(folder: Path) -> tuple[Path, ...]:
    if not (folder / "__init__.py").exists():
        return ()  # a module that stands alone among others, in site-packages for example
    return tuple(sorted(path for path in folder.rglob("*") if path.suffix in DATA_FILES))


def _statements(node: ast.AST) -> Iterator[ast.AST]:
    """Yield all statements within one. Only those import anything: expressions are most of a tree."""
    waiting = [node]
    while waiting:
        node = waiting.pop()
        yield node
        for part in ("body", "orelse", "handlers", "finalbody", "cases"):
            below = getattr(node, part, ())
            waiting += below if isinstance(below, list) else ()  # the body of an expression is no list


def _imports(module: str, source: Path) -> tuple[list[str], set[str]]:
    """Return the modules of the same top-level package that a module imports anywhere, and the other packages."""
    top = module.partition(".")[0]
    package = module if source.name == "__init__.py" else module.rpartition(".")[0]
    names: list[str] = []
    for node in _statements(ast.parse(source.read_bytes())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *filter(None, [base])])
            names += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    own = [name for name in names if name == top or name.startswith(top + ".")]
    others = {name.partition(".")[0] for name in names} - {top, "catena", ""} - sys.stdlib_module_names
    return own, others


@cache
def _version(package: str) -> str:
    """Return `name==version` of the installed package that brings a module, or its name alone."""
    try:
        return f"{package}=={metadata.version(package)}"
    except metadata.PackageNotFoundError:
        pass
    found = _distributions().get(package)
    return f"{package}=={metadata.version(found[0])}" if found else package


@cache
def _distributions() -> Mapping[str, list[str]]:
    return metadata.packages_distributions()
