"""What clients read of repositories, as JSON: facts, trees, paths, refs, histories, lists."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from catena.hub.repo.card import front_matter
from catena.hub.repo.inspect import read_small
from catena.hub.repo.listing import Entry
from catena.hub.repo.records import Folder, RepoCommit, RepoFile
from catena.hub.repo.repos import README, EntryNotFound, Refs
from catena.hub.store import Store

SHOWN_TAGS = 60
OF_THE_CLIENT = frozenset({"self", "ignore_metadata_errors"})
"""Arguments of its own: it hands metadata to itself by keyword."""


def stamp(time: datetime) -> str:
    """Return a time as clients parse it."""
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.") + f"{time.microsecond // 1000:03d}Z"


def info(store: Store, commit: RepoCommit, times: tuple[datetime, datetime], *, blobs: bool, private: bool) -> Any:
    """Return the facts of a repository at a commit; `times` are those of the first and the last commit."""
    id = commit.id
    card = card_data(store, commit)
    tags = card.get("tags", [])[:SHOWN_TAGS]
    pickles = [file.path for file in commit.files if file.pickle]
    tags += ["pickle"] if pickles else []
    tags += [f"license:{card['license']}"] if isinstance(card.get("license"), str) else []
    body: dict[str, Any] = {
        **_identity(commit.name, commit.kind),
        "sha": id,
        "createdAt": stamp(times[0]),
        "lastModified": stamp(times[1]),
        "private": private,
        "gated": False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": tags,
        "cardData": card,
        "usedStorage": sum(file.size for file in commit.files),
        "siblings": [_sibling(file, blobs=blobs) for file in commit.files],
        "securityRepoStatus": {
            "scansDone": True,
            "filesWithIssues": [{"path": path, "level": "unsafe"} for path in pickles],
        },
    }
    if commit.artifact:
        body["catena"] = {"artifact": commit.artifact}
    for key in ("pipeline_tag", "library_name"):
        if isinstance(card.get(key), str):
            body[key] = card[key]
    return body


def card_data(store: Store, commit: RepoCommit) -> dict[str, Any]:
    """Return the metadata of a commit's README, without what the official client stumbles over."""
    readme = commit.file(README)
    if readme is None or readme.where == "export":
        return {}
    found = front_matter(read_small(store.files, readme).decode("utf-8", "replace"))
    said = found.get("tags")
    words = [tag for tag in (said if isinstance(said, list) else [said]) if isinstance(tag, str)]
    kept = {key: value for key, value in found.items() if key not in OF_THE_CLIENT}
    return {**kept, "tags": words} if "tags" in kept else kept


def _identity(name: str, kind: str) -> dict[str, Any]:
    owner, slash, _ = name.partition("/")
    number = hashlib.sha256(f"{kind}/{name}".encode()).hexdigest()[:24]
    return {"_id": number, "id": name, "modelId": name, "author": owner if slash else None}


def _sibling(file: RepoFile, *, blobs: bool) -> dict[str, Any]:
    body: dict[str, Any] = {"rfilename": file.path}
    if blobs:
        body |= {"size": file.size, "blobId": file.oid}
        if file.large:
            body["lfs"] = {"sha256": file.sha256, "size": file.size, "pointerSize": file.pointer_size}
    return body


def entry(item: RepoFile | Folder, commit: RepoCommit, *, expand: bool) -> dict[str, Any]:
    """Return a file or a folder of a tree."""
    if isinstance(item, Folder):
        body: dict[str, Any] = {"type": "directory", "path": item.path, "oid": item.oid, "size": 0}
    else:
        body = {"type": "file", "path": item.path, "oid": item.oid, "size": item.size}
        if item.large:
            body["lfs"] = {"oid": item.sha256, "size": item.size, "pointerSize": item.pointer_size}
    if expand:
        title = commit.message.partition("\n")[0]
        body["lastCommit"] = {"id": commit.id, "title": title, "date": stamp(commit.time)}
        if isinstance(item, RepoFile):
            status = "unsafe" if item.pickle else "safe"
            scan = {"status": status, "pickleImports": []} if item.pickle else None
            body["securityFileStatus"] = {"status": status, "avScan": None, "pickleImportScan": scan}
    return body


def paths_info(commit: RepoCommit, paths: Iterable[str], *, expand: bool) -> list[dict[str, Any]]:
    """Return those of the paths that are there."""
    known = {item.path: item for item in commit.tree}
    words = (path.strip("/") for path in paths)
    return [entry(known[word], commit, expand=expand) for word in words if word in known]


def refs_body(refs: Refs) -> dict[str, Any]:
    """Return branches and tags."""
    return {
        "branches": [
            {"name": name, "ref": f"refs/heads/{name}", "targetCommit": id} for name, id in refs.branches.items()
        ],
        "tags": [{"name": name, "ref": f"refs/tags/{name}", "targetCommit": id} for name, id in refs.tags.items()],
        "converts": [],
        "pullRequests": [
            {"name": f"refs/pr/{name}", "ref": f"refs/pr/{name}", "targetCommit": id} for name, id in refs.pulls.items()
        ],
    }


def history_entry(id: str, commit: RepoCommit) -> dict[str, Any]:
    """Return one commit of a history."""
    return {
        "id": id,
        "title": commit.message.partition("\n")[0],
        "message": commit.description or commit.message.partition("\n")[2],
        "authors": [{"user": commit.author or "catena"}],
        "date": stamp(commit.time),
    }


def listed(item: Entry) -> dict[str, Any]:
    """Return one repository of a list."""
    return {
        **_identity(item.name, item.kind),
        "createdAt": stamp(item.created),
        "lastModified": stamp(item.changed),
        "private": item.private,
        "gated": False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": list(item.tags),
        "usedStorage": item.bytes,
        "catena": {"about": item.about},
    }


def file_of(commit: RepoCommit, path: str) -> RepoFile:
    """Return a file of a commit; raises `EntryNotFound`."""
    found = commit.file(path)
    if found is None:
        raise EntryNotFound(f"{path!r} is not in {commit.name!r} at {commit.id[:12]}")
    return found
