"""The store: keeps artifacts and runs, resolves names, tags and digests. Stages and commands reach stored things here.

<workspace>/workspace.json   format, and where index and files are
            catena.db        the index (or PostgreSQL by URL)
            objects/         files of models and reports, by content
            datasets/        tables, by content
            checkouts/       folders of models and reports, laid out when first used
            answers/         what models answered in evaluations, to be found again; may be deleted
            runs/<group>/    events.jsonl, the recipe as it ran, report.html
            work/<key>/      what an unfinished step left, to go on from
            locks/
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from math import isfinite
from pathlib import Path
from typing import Any, TypeVar, overload

from sqlalchemy import URL

from catena.core.errors import (
    CatenaError,
    DataError,
    EnvironmentProblem,
    NotFound,
    UsageError,
    WorkspaceTooNew,
    did_you_mean,
    environment_problem,
)
from catena.core.types import Artifact, ArtifactBase, DatasetVersion, ModelForm, ModelVersion, Report, Score, Shape
from catena.hub.datasets import Dataset, DatasetWriter
from catena.hub.deny import DenyList, deny_key
from catena.hub.files import FileStore, write_atomically
from catena.hub.index import Index, make_engine
from catena.hub.locks import advisory_lock, file_lock
from catena.hub.schema import HEAD, current_version, upgrade

FORMAT = 1
FOLDER = ".catena"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*")
TAG = re.compile(r"[A-Za-z][A-Za-z0-9._-]*")
DIGEST_PREFIX = re.compile(r"[0-9a-f]{6,64}")

Kind = TypeVar("Kind", bound=ArtifactBase)


class Store:
    """An open workspace. Safe for many processes at once, and for being killed at any moment."""

    def __init__(self, root: Path, index_url: str | URL, files_url: str) -> None:
        self.root = root
        self.index_url = index_url
        self.index = Index(make_engine(index_url))
        self.files = FileStore(files_url)
        self.datasets = root / "datasets"
        self._verified: set[str] = set()
        self.away: CatenaError | None = None
        """Why the index could not be asked, for who opened it all the same."""

    # -- reading -----------------------------------------------------------------------------------------------------

    @overload
    def resolve(self, ref: str) -> Artifact: ...
    @overload
    def resolve(self, ref: str, kind: type[Kind]) -> Kind: ...
    def resolve(self, ref: str, kind: type[ArtifactBase] | None = None) -> ArtifactBase:
        """Return the artifact of `name`, `name@` version, tag, branch or commit, or of a digest's beginning (6 digits).

        Raises `NotFound` with the closest names, or `UsageError` where it is of another kind or ambiguous.
        """
        digest = self._digest_of(ref)
        artifact = self.index.artifact(digest)
        if artifact is None:
            raise NotFound(f"{ref!r} is in no workspace here", hint="`catena list` shows what is.")
        if kind is not None and not isinstance(artifact, kind):
            wanted = kind.model_fields["kind"].default
            raise UsageError(
                f"{ref!r} is a {artifact.kind}; this needs a {wanted}",
                hint=f"`catena list {wanted}` shows those there are.",
            )
        return artifact

    def _digest_of(self, ref: str) -> str:
        name, at, selector = ref.partition("@")
        versions = self.index.versions(name=name)
        if versions:
            return self._selected(name, selector if at else "latest", {row.version: row.digest for row in versions})
        if not at and DIGEST_PREFIX.fullmatch(ref):
            found = self.index.digests_starting(ref)
            if len(found) > 1:
                raise UsageError(f"{ref!r} begins {len(found)} digests", hint="Give more digits.")
            if found:
                return found[0]
        known = {row.name for row in self.index.versions()}
        raise NotFound(
            f"there is nothing named {name!r}",
            hint=did_you_mean(name, known) or "The workspace is empty; `catena run RECIPE` fills it.",
        )

    def _selected(self, name: str, selector: str, versions: dict[int, str]) -> str:
        if selector == "latest":
            return versions[max(versions)]
        if selector.isdecimal() and int(selector) in versions:
            return versions[int(selector)]
        tags = {tag: digest for (_, tag), digest in self.index.tags(name).items()}
        if selector in tags:
            return tags[selector]
        history, branches = self.index.history(name)
        if selector in branches:
            return history[branches[selector]].dataset
        found = [digest for digest in history if DIGEST_PREFIX.fullmatch(selector) and digest.startswith(selector)]
        if len(found) == 1:
            return history[found[0]].dataset
        options = [*tags, *branches, *(str(number) for number in versions), "latest"]
        raise NotFound(
            f"{name!r} has no version, tag, branch or commit {selector!r}", hint=did_you_mean(selector, options)
        )

    def latest(self, name: str) -> Artifact | None:
        """Return the newest artifact of a name, or None."""
        versions = self.index.versions(name=name) if name else []
        return self.index.artifact(versions[-1].digest) if versions else None

    def open_dataset(self, dataset: DatasetVersion) -> Dataset:
        """Open a dataset's tables; the first time in a process every file is verified."""
        opened = Dataset(self.datasets / dataset.table, dataset)
        if dataset.digest not in self._verified:
            opened.verify()
            self._verified.add(dataset.digest)
        return opened

    def checkout(self, artifact: ModelVersion | Report) -> Path:
        """Return a verified folder with the artifact's files. Read it only: the files are links to the stored bytes.

        The base that an adapter needs is laid out beside it, under its own digest.
        """
        if isinstance(artifact, ModelVersion) and artifact.form == "adapter" and artifact.base:
            self.checkout(self.resolve(artifact.base, ModelVersion))
        folder = self.root / "checkouts" / artifact.digest
        folder.parent.mkdir(exist_ok=True)
        return self.files.checkout(artifact.files, folder)

    # -- writing -----------------------------------------------------------------------------------------------------

    def new_dataset(self, shape: Shape, license: str | None = None) -> DatasetWriter:
        """Start a dataset version; use as a context manager and end with `commit`."""
        self.datasets.mkdir(exist_ok=True)
        return DatasetWriter(self.datasets, shape, license, deny=self.denied())

    def denied(self) -> DenyList | None:
        """Return the rows that were erased and must not come back, if any."""
        rows = self.index.erased_rows()
        if not rows:
            return None
        return DenyList(frozenset(row for row, _ in rows), frozenset(mark for _, mark in rows), deny_key(self.root))

    def put_model(self, folder: Path, form: ModelForm = "full", **facts: Any) -> ModelVersion:
        """Store a finished checkpoint folder; `facts` are further fields of `ModelVersion`."""
        files = self.files.put_folder(folder)
        if not files:
            raise DataError(f"{folder} holds no files", hint="A model is a folder with config.json and *.safetensors.")
        model = ModelVersion(form=form, files=files, **facts)
        return model.model_copy(update={"digest": model.compute_digest()})

    def put_report(
        self,
        subject: Artifact,
        suite: str,
        scores: Mapping[str, Score],
        *,
        details: Mapping[str, Any] | None = None,
        folder: Path | None = None,
    ) -> Report:
        """Store a report about `subject`; `folder` holds further files (samples, plots).

        Raises `DataError` for a score that is no finite number.
        """
        for name, score in scores.items():
            if not all(end is None or isfinite(end) for end in (score.value, score.low, score.high)):
                raise DataError(
                    f"the score {name!r} of {suite!r} is no finite number ({score.value})",
                    hint="The model's weights, or what the scorer returns, may hold NaN or infinity.",
                )
        files = self.files.put_folder(folder) if folder is not None else ()
        report = Report(
            subject=subject.digest, suite=suite, scores=dict(scores), details=dict(details or {}), files=files
        )
        return report.model_copy(update={"digest": report.compute_digest()})

    def tag(self, ref: str, tag: str, by: str = "") -> Artifact:
        """Put a tag on what `ref` (a name, with version or tag) stands for."""
        artifact, name = self.resolve(ref), ref.partition("@")[0]
        if not TAG.fullmatch(tag) or tag == "latest":
            raise UsageError(
                f"{tag!r} cannot be a tag",
                hint="A tag begins with a letter and has letters, digits, '.', '_' and '-'; 'latest' is taken.",
            )
        if tag in self.index.history(name)[1]:
            raise UsageError(f"{tag!r} is a branch of {name!r}", hint="Choose another word.")
        if not self.index.versions(name=name):
            raise UsageError(f"{ref!r} is a digest; a tag belongs to a name", hint="Use name@version.")
        self.index.move_tag(name, tag, artifact.digest, by)
        return artifact

    def untag(self, name: str, tag: str, by: str = "") -> None:
        """Take a tag away; its history stays."""
        tags = self.index.tags(name)
        if (name, tag) not in tags:
            known = did_you_mean(tag, (other for _, other in tags))
            raise NotFound(f"{name!r} has no tag {tag!r}", hint=known or "It has none at all.")
        self.index.move_tag(name, tag, None, by)

    # -- working -----------------------------------------------------------------------------------------------------

    def lock(self, name: str, *, shared: bool = False, wait: bool = True) -> AbstractContextManager[bool]:
        """Hold a lock between processes; it ends with the process. Yields False if `wait` is off and it is held."""
        local = file_lock(self.root / "locks" / f"{name}.lock", shared=shared, wait=wait)
        if self.index.engine.dialect.name != "postgresql":
            return local
        return self._both(local, advisory_lock(self.index.engine, name, shared=shared, wait=wait))

    @contextmanager
    def _both(self, local: AbstractContextManager[bool], remote: AbstractContextManager[bool]) -> Iterator[bool]:
        with local as here, self.index.translated():
            if not here:
                yield False
                return
            with remote as held:
                yield held

    def workdir(self, key: str) -> Path:
        """Return the folder of the unfinished step with this key."""
        folder = self.root / "work" / key
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def group_folder(self, group: str) -> Path:
        """Return the folder of one `catena run`."""
        folder = self.root / "runs" / group
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @contextmanager
    def temporary_folder(self) -> Iterator[Path]:
        """A folder inside the workspace (same disk, same limits) that goes with the block."""
        folder = Path(tempfile.mkdtemp(prefix="tmp-", dir=self.root / "work"))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def check(self) -> None:
        """Ask the index whether it is there and up to date, and bring it there; raises what keeps it from it."""
        _bring_up_to_date(self)
        self.away = None

    def close(self) -> None:
        """Give the database's connections back."""
        self.index.engine.dispose()


def init_store(root: Path, *, index_url: str = "", files_url: str = "") -> Store:
    """Make a workspace at `root` (nothing happens to one that is there), and open it."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        for name in ("objects", "datasets", "runs", "work", "locks"):
            (root / name).mkdir(exist_ok=True)
        with file_lock(root / "locks" / "init.lock"):
            described = root / "workspace.json"
            if not described.exists():
                _open(root, index_url, files_url).close()  # a workspace that cannot be opened is not described
                settings = {"format": FORMAT, "index": index_url, "files": files_url}
                # The URL of a database may hold a password: for the owner's eyes only.
                write_atomically(described, json.dumps(settings, indent=2).encode() + b"\n", mode=0o600)
    except OSError as error:
        raise environment_problem(error, root) or error from error
    return open_store(root)


def open_store(root: Path, *, without_index: bool = False) -> Store:
    """Open a workspace folder; an older index is brought up to date.

    With `without_index` also while a database on another machine cannot be asked: `away` says so, and `check` asks it
    again. Raises `NotFound` where there is none and `WorkspaceTooNew` for one of a later format.
    """
    settings = workspace_settings(root)
    return _open(root, settings.get("index") or "", settings.get("files") or "", without_index=without_index)


def workspace_settings(root: Path) -> dict[str, Any]:
    """Read what a workspace folder says of itself: format, and where index and files are (empty: inside)."""
    try:
        settings = json.loads((root / "workspace.json").read_text())
    except FileNotFoundError:
        raise NotFound(f"there is no workspace at {root}", hint="Make one with: catena init") from None
    except (json.JSONDecodeError, OSError) as error:
        raise DataError(f"{root / 'workspace.json'} cannot be read: {error}") from error
    if not isinstance(settings, dict):
        raise DataError(f"{root / 'workspace.json'} does not describe a workspace", hint="Restore it from a copy.")
    if settings.get("format", 0) > FORMAT:
        raise WorkspaceTooNew(
            f"the workspace {root} has format {settings['format']}; this Catena knows up to {FORMAT}",
            hint="Install a newer Catena: pip install -U catena-ai",
        )
    return settings


def _open(root: Path, index_url: str, files_url: str, *, without_index: bool = False) -> Store:
    sqlite = URL.create("sqlite", database=str(root / "catena.db"))  # a path may hold what a URL's text cannot
    store = Store(root, index_url or sqlite, files_url or str(root / "objects"))
    try:
        store.check()
    except EnvironmentProblem as error:
        if not without_index or store.index.engine.dialect.name == "sqlite":
            store.close()
            raise
        store.away = error
    except BaseException:
        store.close()
        raise
    return store


def _bring_up_to_date(store: Store) -> None:
    try:
        with store.index.translated():
            if current_version(store.index.engine) != HEAD:
                with store.lock("migrate"):
                    upgrade(store.index.engine)
    except OSError as error:
        raise environment_problem(error, store.root) or error from error
