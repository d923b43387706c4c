"""Writing repositories: commits, branches, tags, removal. Each is one transaction at the end, so a kill leaves nothing.

A push to a model's `main` that makes a whole checkpoint is a new version of the name in the same transaction, with a
run `hub.push` that says who pushed what on top of which version: `catena serve NAME` and lineage take it from there.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, insert, select

from catena.core.digest import digest_of
from catena.core.errors import UsageError
from catena.core.types import Artifact, File, ModelVersion, Run
from catena.hub import commits as store_commits
from catena.hub.commits import MAIN
from catena.hub.index import USED_UP, now
from catena.hub.repo import records
from catena.hub.repo.card import front_matter, license_of
from catena.hub.repo.inspect import model_facts, read_small
from catena.hub.repo.records import HEADS, PRIVATE, PULLS, TAGS, RepoCommit, RepoFile, RepoKind, inline_file
from catena.hub.repo.repos import README, Conflict, RepoNotFound, Repos, RevisionNotFound, checked_name
from catena.hub.repo.tree import Add, Delete, Operation, applied
from catena.hub.schema import names, tag_moves

REF = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[\w.-]{1,96})*", re.ASCII)
DIGEST_END = re.compile(r"([0-9a-f]{64})/?$")
ATTRIBUTES = "*.safetensors filter=lfs diff=lfs merge=lfs -text\n*.gguf filter=lfs diff=lfs merge=lfs -text\n"


class Stale(Conflict):
    """The branch does not stand where the client believed."""

    http_status = 412


@dataclass(frozen=True, slots=True)
class Push:
    """What is to be committed, and who says so."""

    operations: tuple[Operation, ...]
    message: str = ""
    description: str = ""
    by: str = ""
    parent: str = ""
    """Commit that the branch must stand on; empty: any."""
    source: Mapping[str, Any] | None = None
    """Where it was pulled from: endpoint, repo, revision, commit. None: it was pushed here."""


def create(repos: Repos, kind: RepoKind, name: str, *, by: str = "", private: bool = False) -> None:
    """Make an empty repository; raises `Conflict` where there is one."""
    checked_name(name)
    with repos.alone(kind, name):
        if repos.exists(kind, name):
            raise Conflict(f"there is a {kind} {name!r} already", hint="Push to it, or choose another name.")
        _require_kind(repos, kind, name)
        commit = RepoCommit(
            kind=kind,
            name=name,
            files=(inline_file(".gitattributes", ATTRIBUTES),),
            message="initial commit",
            author=by,
            time=now(),
        )
        with repos.writing() as connection:
            records.write(connection, commit, f"{HEADS}{MAIN}", by)
            if private:
                records.move(connection, kind, name, PRIVATE, commit.id, by=by)


def set_private(repos: Repos, kind: RepoKind, name: str, private: bool, *, by: str = "") -> None:
    """Say whether a repository is seen without a key where others are."""
    head = repos.commit(kind, name)
    with repos.writing() as connection:
        records.move(connection, kind, name, PRIVATE, head.id if private else None, by=by)


def push(repos: Repos, kind: RepoKind, name: str, branch: str, what: Push) -> RepoCommit:
    """Commit on a branch, or on a proposal (`refs/pr/1`), and return the commit; its own where nothing changes.

    Raises `RevisionNotFound` for no such branch, `Stale` where it has moved on, `NotFound` and `UsageError` for
    operations that cannot be, `DataError` for weights that are not whole. Nothing is written then.
    """
    refs = repos.refs(kind, name)
    number = branch.removeprefix("refs/pr/") if branch.startswith("refs/pr/") else ""
    if (number not in refs.pulls) if number else (branch not in refs.branches):
        raise RevisionNotFound(f"{name!r} has no branch {branch[:100]!r}", hint="Make it first: create_branch.")
    return _pushed(repos, (kind, name), f"{PULLS}{number}" if number else f"{HEADS}{branch}", what)[0]


def propose(repos: Repos, kind: RepoKind, name: str, branch: str, what: Push) -> tuple[RepoCommit, str]:
    """Commit on top of a branch without moving it; returns the commit and the number of the new proposal."""
    repos.commit(kind, name, branch)
    made, ref = _pushed(repos, (kind, name), f"{HEADS}{branch}", what, proposed=True)
    return made, ref.removeprefix(PULLS)


def accept(repos: Repos, kind: RepoKind, name: str, number: str, *, by: str = "") -> RepoCommit:
    """Bring a proposal's changes to `main`, on top of whatever stands there now; it stays open for later ones."""
    refs = repos.refs(kind, name)
    if number not in refs.pulls:
        raise RevisionNotFound(f"{name!r} has no proposal {number[:20]!r}")
    changed = repos.log(kind, name, refs.pulls[number])
    known = {id for id, _ in repos.log(kind, name)}
    base = next((commit for id, commit in changed if id in known), None)
    before, after = base.by_path() if base else {}, changed[0][1].by_path()
    operations: list[Operation] = [Delete(path) for path in sorted(before.keys() - after.keys())]
    operations += [Add(file) for path, file in after.items() if before.get(path) != file]
    made = push(repos, kind, name, MAIN, Push(tuple(operations), f"proposal {number}: {changed[0][1].message}", by=by))
    with repos.alone(kind, name):
        if repos.own(kind, name).get(f"{PULLS}{number}") == refs.pulls[number]:  # else more was pushed to it meanwhile
            with repos.writing() as connection:
                records.move(connection, kind, name, f"{PULLS}{number}", None, by=by)
    return made


def _pushed(
    repos: Repos, repo: tuple[RepoKind, str], ref: str, what: Push, *, proposed: bool = False
) -> tuple[RepoCommit, str]:
    """Commit on what `ref` stands on; returns the commit and the ref that moved: `ref`, or a new proposal."""
    kind, name = repo
    with repos.alone(kind, name):
        stands = repos.own(kind, name).get(ref)
        if stands is None:
            raise RevisionNotFound(f"{name!r} has no branch {ref.removeprefix(HEADS)[:100]!r}")
        head = repos.read(kind, name, stands)
        if what.parent and not head.id.startswith(what.parent):
            raise Stale(f"{name!r} has moved on: {ref} is {head.id}", hint="Fetch, and push on top of that.")
        files = applied(head.files, what.operations)
        if files == head.files and not proposed:
            return head, ref
        _require_own_rows(head, files)
        for file in files:
            if file.where == "object" and not repos.store.files.has(file.sha256):
                raise UsageError(f"{file.path!r} was not uploaded", hint="Upload its bytes first, then commit.")
        to = ref
        if proposed:
            with repos.reading() as connection:
                to = f"{PULLS}{1 + len(records.pulls_ever(connection, kind, name))}"
        return _written(repos, head, to, files, what), to


def _written(repos: Repos, head: RepoCommit, ref: str, files: tuple[RepoFile, ...], what: Push) -> RepoCommit:
    kind, name = head.kind, head.name
    native = repos.native(kind, name)
    draft = RepoCommit(
        kind=kind,
        name=name,
        parents=(head.id,),
        files=files,
        message=what.message,
        description=what.description,
        author=what.by,
        time=now(),
        native=head.native if ref.removeprefix(HEADS) in native else None,  # what came since is still to be seen
        artifact=head.artifact if kind == "dataset" and head.artifact else None,
    )
    tree = draft.by_path()
    facts = model_facts(repos.store.files, tree) if kind == "model" and ref == f"{HEADS}{MAIN}" else None
    if facts is None:
        with repos.writing() as connection:
            records.write(connection, draft, ref, what.by)
        return draft
    _require_kind(repos, kind, name)
    if native.get(MAIN) != head.native:
        raise Stale(f"a run has just made a version of {name!r}", hint="Fetch, and push on top of that.")
    stored = tuple(_as_object(repos, file) for file in files)
    before = repos.store.index.artifact(head.artifact) if head.artifact else None
    model = _model(repos, stored, facts, before if isinstance(before, ModelVersion) else None)
    run = _run(name, model, before, what, len(stored))
    model = model.model_copy(update={"made_by": run.id, "parents": tuple(run.inputs.values()), "created": run.ended})
    commit = draft.model_copy(update={"files": stored, "artifact": model.digest, "native": model.digest})

    def beside(connection: Connection) -> None:
        records.write(connection, commit, ref, what.by)

    repos.store.index.finish(run, model, name, beside=beside)
    return commit


def _model(
    repos: Repos, files: tuple[RepoFile, ...], facts: Mapping[str, Any], before: ModelVersion | None
) -> ModelVersion:
    tree = {file.path: file for file in files}
    card = (
        front_matter(read_small(repos.store.files, tree[README]).decode("utf-8", "replace")) if README in tree else {}
    )
    kept = {file.path: file.sha256 for file in before.files if _is_weights(file.path)} if before else {}
    if before is not None and kept and kept == {path: tree[path].sha256 for path in tree if _is_weights(path)}:
        # The same weights: what was known of them holds, and a card says more or less about them than before.
        told = ("form", "architecture", "parameters", "dtype", "quantization", "context", "base", "labels", "license")
        facts = {name: getattr(before, name) for name in told}
    else:
        facts = {**facts, "base": _base(repos, tree, card)}
    stored = tuple(File(path=file.path, size=file.size, sha256=file.sha256) for file in files)
    license = license_of(card) or facts.get("license")
    model = ModelVersion(files=stored, **{**facts, "license": license})
    return model.model_copy(update={"digest": model.compute_digest()})


def _is_weights(path: str) -> bool:
    return path.endswith((".safetensors", ".gguf", ".onnx", ".bin"))


def _base(repos: Repos, tree: Mapping[str, RepoFile], card: Mapping[str, Any]) -> str | None:
    """Return the digest of the base that a pushed model names, where the workspace has it."""
    import orjson

    named = [card.get("base_model")]
    if "adapter_config.json" in tree:
        settings = orjson.loads(read_small(repos.store.files, tree["adapter_config.json"]))
        named.insert(0, settings.get("base_model_name_or_path") if isinstance(settings, dict) else None)
    for word in named:
        if not isinstance(word, str):
            continue
        ends = DIGEST_END.search(word)
        found = repos.store.index.artifact(ends[1]) if ends else repos.store.latest(word)
        if isinstance(found, ModelVersion):
            return found.digest
    return None


def _run(name: str, model: ModelVersion, before: Artifact | None, what: Push, files: int) -> Run:
    """Return the record of a push or a pull: what lineage shows of where a model came from."""
    id, at = uuid.uuid4().hex[:12], now()
    stage = "hub.push" if what.source is None else "hub.pull"
    config = {"repo": name, "by": what.by, "message": what.message, "files": files, **(what.source or {})}
    return Run(
        id=id,
        group=id,
        step=stage.partition(".")[2],
        stage=stage,
        name=name,
        status="done",
        config=config,
        inputs={"before": before.digest} if isinstance(before, ModelVersion) and before.digest != model.digest else {},
        output=model.digest,
        key=digest_of([stage, id]),
        started=at,
        ended=at,
    )


def _as_object(repos: Repos, file: RepoFile) -> RepoFile:
    """Put the text of an inline file where a model's files are."""
    if file.where != "inline":
        return file
    with repos.store.temporary_folder() as folder:
        path = folder / "file"
        path.write_text(file.text or "", encoding="utf-8")
        repos.store.files.put(path, file.path)
    return file.model_copy(update={"where": "object", "text": None})


def _require_kind(repos: Repos, kind: RepoKind, name: str) -> None:
    held = repos.store.latest(name)
    if held is not None and held.kind != kind:
        raise Conflict(f"{name!r} is a {held.kind} of this workspace", hint="Choose another name for the repository.")


def _require_own_rows(head: RepoCommit, files: Iterable[RepoFile]) -> None:
    """Refuse to change rows by their Parquet copy: the dataset has a history of its own."""
    rows = {file for file in head.files if file.where == "export"}
    if rows and rows != {file for file in files if file.path.startswith("data/") or file.where == "export"}:
        raise UsageError(
            f"the rows of {head.name!r} are the workspace's own and are not changed by files",
            hint="Use `catena data commit`; a README and other files may be pushed beside them.",
        )


# -- branches, tags, removal -------------------------------------------------------------------------------------------


def checked_ref(name: str) -> str:
    """Return a branch's or tag's name; raises `UsageError`."""
    if not REF.fullmatch(name) or ".." in name or name.endswith((".lock", "/", ".")) or name.startswith("refs/"):
        raise UsageError(f"{name[:100]!r} cannot be a branch or tag", hint="Letters, digits, '.', '_', '-' and '/'.")
    return name


def create_branch(repos: Repos, kind: RepoKind, name: str, branch: str, at: str = "", *, by: str = "") -> str:
    """Begin a branch at a revision (default: main); returns its commit. Raises `Conflict` where there is one."""
    checked_ref(branch)
    commit = repos.commit(kind, name, at or MAIN)
    with repos.alone(kind, name):
        _require_free(repos, kind, name, branch)
        with repos.writing() as connection:
            records.move(connection, kind, name, f"{HEADS}{branch}", commit.id, by=by)
    return commit.id


def _require_free(repos: Repos, kind: RepoKind, name: str, ref: str) -> None:
    """Refuse a name that is a branch or tag already, and a repository that is gone. For who is `alone`."""
    own = repos.own(kind, name)
    if f"{HEADS}{MAIN}" not in own:
        raise RepoNotFound(f"there is no {kind} {name!r} on this hub any more")
    taken = {f"{HEADS}{ref}", f"{TAGS}{ref}"} & own.keys()
    if taken or ref in repos.native(kind, name) or (name, ref) in repos.store.index.tags(name):
        raise Conflict(f"{name!r} has a branch or tag {ref!r} already")


def delete_branch(repos: Repos, kind: RepoKind, name: str, branch: str, *, by: str = "") -> None:
    """Take a branch away; `main` stays."""
    if branch == MAIN:
        raise UsageError("the branch main cannot be deleted", hint="Delete the repository.")
    with repos.alone(kind, name):
        ours = f"{HEADS}{branch}" in repos.own(kind, name) and branch not in repos.native(kind, name)
        if ours:
            with repos.writing() as connection:
                records.move(connection, kind, name, f"{HEADS}{branch}", None, by=by)
    if not ours:
        repos.refs(kind, name)
        raise RevisionNotFound(f"{name!r} has no branch {branch[:100]!r} that was made here")


def create_tag(repos: Repos, kind: RepoKind, name: str, tag: str, at: str = "", *, by: str = "") -> str:
    """Put a tag on a revision (default: main); on a version of the store it is the store's tag too."""
    checked_ref(tag)
    commit = repos.commit(kind, name, at or MAIN)
    with repos.alone(kind, name):
        _require_free(repos, kind, name, tag)
        versions = {row.digest: row.version for row in repos.store.index.versions(name=name)}
        if commit.artifact in versions and "/" not in tag and tag[0].isalpha() and tag != "latest":
            repos.store.tag(f"{name}@{versions[commit.artifact]}", tag, by=by or "hub")
        with repos.writing() as connection:
            records.move(connection, kind, name, f"{TAGS}{tag}", commit.id, by=by)
    return commit.id


def delete_tag(repos: Repos, kind: RepoKind, name: str, tag: str, *, by: str = "") -> None:
    """Take a tag away, here and in the store."""
    refs = repos.refs(kind, name)
    if tag not in refs.tags:
        raise RevisionNotFound(f"{name!r} has no tag {tag[:100]!r}")
    with repos.alone(kind, name):
        if (name, tag) in repos.store.index.tags(name):
            repos.store.untag(name, tag, by=by or "hub")
        with repos.writing() as connection:
            records.move(connection, kind, name, f"{TAGS}{tag}", None, by=by)


def delete(repos: Repos, kind: RepoKind, name: str, *, by: str = "") -> None:
    """Remove a repository with its history, and the name with its tags; what others were made from stays by digest.

    `catena gc --unused` then frees what nothing leads to.
    """
    if not repos.exists(kind, name):
        raise RepoNotFound(f"there is no {kind} {name!r} on this hub")
    with repos.alone(kind, name):
        native = bool(repos.native(kind, name))
        with repos.writing() as connection:
            records.remove(connection, kind, name)
            if native:
                forget_name(connection, name, by or "hub", now())


def forget_name(connection: Connection, name: str, by: str, at: datetime) -> None:
    """Let a name stand for nothing: tags and branches are taken away, its version numbers stay used up."""
    versions = connection.execute(select(names.c.version).where(names.c.name == name)).scalars().all()
    standing: dict[str, str | None] = {}
    moves = select(tag_moves.c.tag, tag_moves.c.digest).where(tag_moves.c.name == name).order_by(tag_moves.c.id)
    for row in connection.execute(moves):
        standing[row.tag] = row.digest
    gone = [*(tag for tag, digest in standing.items() if digest), *(f"{USED_UP}{version}" for version in versions)]
    for tag in gone:
        connection.execute(insert(tag_moves).values(name=name, tag=tag, digest=None, moved=at, by=by))
    connection.execute(names.delete().where(names.c.name == name))
    for branch in store_commits.read_branches(connection, name):
        store_commits.move_branch(connection, name, branch, None, by, at)
