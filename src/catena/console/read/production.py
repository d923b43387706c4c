"""What is in production without asking a gateway: tags of models, who moved them, the change log."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from catena.core.types import ModelVersion
from catena.govern.changes import Change, change_log
from catena.hub.attribution import AnswerSource, answer_sources
from catena.workspace import Workspace

PRODUCTION = "production"


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
