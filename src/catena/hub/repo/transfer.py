"""To and from other hubs, by the official client: a pull becomes a version here, a version here a commit there.

pull  files -> work/hub-pull-<what>/ (goes on after a kill) -> commit, and for a model or rows of ours a version
push  a commit's files -> create_repo, create_commit
"""

from __future__ import annotations

import io
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from catena.core.digest import digest_of
from catena.core.errors import DataError, NotFound, RemoteError, UsageError
from catena.core.registry import require
from catena.core.types import DatasetVersion, Run
from catena.hub.commits import MAIN
from catena.hub.exchange import RowFile
from catena.hub.index import now
from catena.hub.repo import pushing
from catena.hub.repo.card import front_matter, license_of
from catena.hub.repo.exports import export_path
from catena.hub.repo.records import RepoCommit, RepoKind
from catena.hub.repo.repos import README, Repos, checked_name
from catena.hub.repo.spool import Spool
from catena.hub.repo.tree import Add, Delete, Operation, checked_path
from catena.hub.rows import to_sample

DEFAULT = "https://huggingface.co"
BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class Hub:
    """Another hub, and who asks it."""

    endpoint: str = ""
    """Empty: HF_ENDPOINT, or else huggingface.co."""
    token: str = ""
    """Empty: HF_TOKEN, or else nobody."""

    @property
    def url(self) -> str:
        """The hub's address."""
        return (self.endpoint or os.environ.get("HF_ENDPOINT") or DEFAULT).rstrip("/")

    @contextmanager
    def api(self) -> Iterator[Any]:
        """The official client; without Xet, for which only its inventors have a store."""
        package = require("huggingface_hub", "hub")
        constants: Any = require("huggingface_hub.constants", "hub")
        errors = require("huggingface_hub.errors", "hub")
        before = constants.HF_HUB_DISABLE_XET
        host = urlsplit(self.url).hostname or ""
        constants.HF_HUB_DISABLE_XET = before or not (host == "huggingface.co" or host.endswith(".huggingface.co"))
        try:
            yield package.HfApi(endpoint=self.url, token=self.token or os.environ.get("HF_TOKEN") or False)
        except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
            raise NotFound(f"{self.url} does not show it: {_sentence(error)}", hint="See name and token.") from error
        except (errors.HfHubHTTPError, errors.HFValidationError, require("httpx2").HTTPError) as error:
            raise RemoteError(f"{self.url}: {_sentence(error)}") from error
        finally:
            constants.HF_HUB_DISABLE_XET = before


@dataclass(frozen=True, slots=True)
class Pulled:
    """What a pull came to."""

    name: str
    kind: RepoKind
    commit: str
    """Of the other hub."""
    artifact: str | None
    """Digest of the version that it is here; None for files that are none."""
    files: int


def pull(
    repos: Repos, hub: Hub, repo: str, *, kind: RepoKind = "model", revision: str = MAIN, name: str = "", by: str = ""
) -> Pulled:
    """Bring a repository of another hub in under a name (default: its own); its run says from where.

    A model's files are a version of the name. So are a dataset's where its Parquet files have the columns of a shape;
    files of any other dataset are served as they are (`data.collect_hf` makes rows of them).
    """
    target = checked_name(name or repo)
    held = f"hub-pull-{digest_of([hub.url, kind, repo])[:24]}"
    # What is stored here belongs to nothing before the end, and of one repository pulls take turns.
    with repos.store.lock("gc", shared=True), repos.store.lock(held):
        place = repos.store.root / "work" / held
        with hub.api() as api:
            commit = str(api.repo_info(repo, repo_type=kind, revision=revision).sha)
            folder = place / digest_of(commit)[:24]
            paths = [checked_path(path) for path in api.list_repo_files(repo, repo_type=kind, revision=commit)]
            api.snapshot_download(repo, repo_type=kind, revision=commit, local_dir=folder)
        files = {path: folder / path for path in sorted(paths)}
        source = {"endpoint": hub.url, "source": repo, "revision": revision, "commit": commit}
        artifact = _taken(repos, kind, target, files, source, by)
        shutil.rmtree(place, ignore_errors=True)
    return Pulled(target, kind, commit, artifact, len(files))


def _taken(
    repos: Repos, kind: RepoKind, target: str, files: dict[str, Path], source: dict[str, Any], by: str
) -> str | None:
    """Make what was downloaded a version or a commit of a name here; returns the digest of the version, if any."""
    if kind == "dataset":
        version = _rows(repos, target, files, source)
        if version is not None:
            return version.digest
    if not repos.exists(kind, target):
        pushing.create(repos, kind, target, by=by)
    head = repos.commit(kind, target)
    operations: list[Operation] = [Add(_stored(repos, place, path)) for path, place in files.items()]
    operations += [Delete(file.path) for file in head.files if file.path not in files]
    message = f"pulled from {source['endpoint']}/{source['source']} at {source['commit'][:12]}"
    what = pushing.Push(tuple(operations), message, by=by, source=source)
    return pushing.push(repos, kind, target, MAIN, what).artifact


def _stored(repos: Repos, path: Path, name: str) -> Any:
    with Spool(repos.store) as spool, path.open("rb") as stream:
        while block := stream.read(BLOCK):
            spool.write(block)
        return spool.file(name)


def _rows(repos: Repos, name: str, files: dict[str, Path], source: dict[str, Any]) -> DatasetVersion | None:
    """Store the rows of Parquet files that a store like ours has written; None for any others."""
    tables = [place for path, place in files.items() if path.endswith(".parquet")]
    try:
        opened = [RowFile(path) for path in tables]
    except DataError:
        return None
    if not opened or len({one.shape for one in opened}) > 1 or not all(_has_ids(path) for path in tables):
        return None
    card = front_matter(files[README].read_text(encoding="utf-8", errors="replace")) if README in files else {}
    with repos.store.new_dataset(opened[0].shape, license_of(card)) as writer:
        for one in opened:
            for row in one.rows():
                writer.add(to_sample(row))
        dataset = writer.commit()
    id, at = uuid.uuid4().hex[:12], now()
    run = Run(
        id=id,
        group=id,
        step="pull",
        stage="hub.pull",
        name=name,
        status="done",
        config={"repo": name, **source},
        output=dataset.digest,
        key=digest_of(["hub.pull", id]),
        started=at,
        ended=at,
    )
    repos.store.index.finish(run, dataset.model_copy(update={"made_by": id, "created": at}), name)
    return dataset


def _has_ids(path: Path) -> bool:
    import pyarrow.parquet as parquet

    return {"_id", "_source", "metadata"} <= set(parquet.read_schema(path).names)


def push(
    repos: Repos, hub: Hub, ref: str, *, kind: RepoKind, to: str = "", private: bool = False, message: str = ""
) -> str:
    """Put what `ref` (name, or name@ version, tag, branch) stands for on another hub's `main`; returns its commit."""
    name, _, selector = ref.partition("@")
    commit = repos.commit(kind, name, selector or MAIN)
    target = to or name
    checked_name(target)
    if "/" not in target:
        raise UsageError(f"{target!r} has no owner", hint="Other hubs want owner/name: --as owner/name.")
    said = message or f"{ref} of a Catena workspace ({(commit.artifact or commit.id)[:12]})"
    with hub.api() as api:
        package = require("huggingface_hub", "hub")
        made = str(api.create_repo(target, repo_type=kind, private=private, exist_ok=True).repo_id)
        there = set(api.list_repo_files(made, repo_type=kind))
        operations = [
            package.CommitOperationAdd(file.path, _content(repos, commit, file.path)) for file in commit.files
        ]
        gone = there - {file.path for file in commit.files} - {".gitattributes"}
        operations += [package.CommitOperationDelete(path) for path in sorted(gone)]
        return str(api.create_commit(made, operations, commit_message=said, repo_type=kind).oid)


def _content(repos: Repos, commit: RepoCommit, path: str) -> Any:
    file = commit.file(path)
    assert file is not None
    if file.text is not None:
        return file.text.encode()
    if file.where == "export":
        return str(export_path(repos.store, file))
    place = repos.store.files.local_path(file.sha256)
    if place is not None:
        return str(place)
    return io.BufferedReader(repos.store.files.open(file.sha256))


def _sentence(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines)[:300] or type(error).__name__


def kind_of(repos: Repos, name: str) -> RepoKind:
    """Return what a name is here; raises `NotFound`."""
    kinds: tuple[RepoKind, ...] = ("model", "dataset")
    for kind in kinds:
        if repos.exists(kind, name):
            return kind
    raise NotFound(f"there is no model or dataset {name!r} here", hint="`catena hub list` shows what is.")
