"""What is in production without asking a gateway: tags of models, who moved them, the change log."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from catena.core.errors import CatenaError
from catena.core.types import ModelVersion
from catena.govern.changes import Change, change_log
from catena.hub.attribution import AnswerSource, answer_sources
from catena.workspace import Workspace

PRODUCTION = "production"
NOT_SERVED = ("adapter", "tokenizer", "filter")
"""Forms of models that answer nobody by themselves."""


@dataclass(frozen=True)
class Tagged:
    """A tag of a model."""

    name: str
    tag: str
    version: int | None
    """None where the name has no version of these weights (any more)."""
    digest: str
    moved: datetime | None
    by: str
    scores: Mapping[str, float]
    """Of the reports about it."""


def tagged(workspace: Workspace) -> list[Tagged]:
    """Return every tag of every model, those in production first, then the newest move."""
    index = workspace.store.index
    moves = {(move.name, move.tag): move for move in index.tag_history()}
    versions = {(row.name, row.digest): row.version for row in index.versions()}
    scores = {change.digest: change.scores for change in change_log(workspace.store) if change.what == "version"}
    found = []
    for (name, tag), digest in index.tags().items():
        if tag.startswith("@") or not isinstance(index.artifact(digest), ModelVersion):
            continue
        move = moves.get((name, tag))
        at, by = (move.moved, move.by) if move else (None, "")
        found.append(Tagged(name, tag, versions.get((name, digest)), digest, at, by, scores.get(digest, {})))
    newest = sorted(found, key=lambda one: one.moved.timestamp() if one.moved else 0.0, reverse=True)
    return sorted(newest, key=lambda one: one.tag != PRODUCTION)


def digest_of(workspace: Workspace, ref: str) -> str:
    """Return a stored model's digest; empty where it is not here: a gateway may run over another workspace."""
    try:
        return workspace.store.resolve(ref, ModelVersion).digest if ref else ""
    except CatenaError:
        return ""


def candidates(workspace: Workspace, served: str) -> list[str]:
    """Return stored models that could be released: versions of the name that is served, newest first, then others.

    `served` is what a deploy file says: name, name@tag, name@version or a digest. What is served now is none of them.
    """
    index, name, now = workspace.store.index, served.partition("@")[0], digest_of(workspace, served)
    stored = [one for one in index.all_artifacts() if isinstance(one, ModelVersion)]
    models = {one.digest for one in stored if one.form not in NOT_SERVED and one.digest != now}
    mine: list[str] = []
    newest: dict[str, str] = {}
    for row in sorted(index.versions(), key=lambda row: (row.created, row.version), reverse=True):
        if row.digest in models:
            ref = f"{row.name}@{row.version}"
            mine += [ref] if row.name == name else []
            newest.setdefault(row.name, ref)
    return [*mine, *(ref for other, ref in newest.items() if other != name)]


def changes(workspace: Workspace, offset: int, limit: int, words: str = "") -> tuple[list[Change], int]:
    """Return a part of the models' change log, newest first, and how many lines there are; `words` must occur."""
    wanted = words.casefold()
    found = [one for one in reversed(change_log(workspace.store)) if wanted in _words(one)]
    return found[offset : offset + limit], len(found)


def _words(change: Change) -> str:
    parts = (change.name, change.what, change.detail, change.by, change.run, change.license, *change.inputs.values())
    return "\n".join((*parts, *change.changed, *change.changed.values())).casefold()


def sources(workspace: Workspace, digest: str, answer: str) -> list[AnswerSource]:
    """Return what a stored model can have learnt an answer from. Raises `NotFound` where it is not stored here."""
    return answer_sources(workspace.store, workspace.store.resolve(digest, ModelVersion), answer)
