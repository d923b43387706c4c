"""The tag that a release moves: a model that the deploy file names as `name@tag` is promoted by moving that tag in the
workspace's store, so that everybody who asks for `helper@production` gets what users get."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from sqlalchemy import func, insert, select

from catena.core.errors import EnvironmentProblem, UsageError
from catena.core.types import ModelVersion
from catena.hub.index import now
from catena.hub.schema import tag_moves
from catena.hub.store import Store

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Move:
    """A tag that goes from one version of a model to another."""

    name: str
    tag: str
    before: str
    """Digest that it stands on while the candidate is none but that."""
    after: str


class Tags:
    """The tags of a store, as releases see them."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def require(self, candidate: str) -> None:
        """Raise `NotFound`, or `UsageError` for what is no model; without its index a store takes it at its word."""
        try:
            self._store.resolve(candidate, ModelVersion)
        except EnvironmentProblem as error:
            logger.warning("whether there is %s cannot be told without the index: %s", candidate, error)

    def move(self, stable: str, candidate: str) -> Move | None:
        """Return what the promotion of a candidate moves; None where no tag is named, or the models' names differ."""
        name, _, tag = stable.partition("@")
        before = self._store.index.tags(name).get((name, tag)) if tag else None
        if before is None:
            return None
        after = self._store.resolve(candidate, ModelVersion).digest
        known = {row.digest for row in self._store.index.versions(name=name)}
        return Move(name, tag, before, after) if after in known else None

    def go(self, move: Move, by: str) -> None:
        """Put the tag on the candidate. Raises `UsageError` where it stands on something else by now."""
        self._put(move, move.after, move.before, by)

    def back(self, move: Move, by: str) -> bool:
        """Put it back; tells whether it was where the promotion had put it."""
        try:
            self._put(move, move.before, move.after, by)
        except UsageError:
            return False
        return True

    def went(self, move: Move) -> bool | None:
        """Tell whether a move was made; None while the index cannot be asked."""
        try:
            return self._store.index.tags(move.name).get((move.name, move.tag)) == move.after
        except EnvironmentProblem as error:
            logger.warning("whether %s was promoted cannot be told without the index: %s", move.name, error)
            return None

    def _put(self, move: Move, to: str, before: str, by: str) -> None:
        """Move the tag if it stands where it should, in one transaction: two who try cannot both succeed."""
        index = self._store.index
        same = (tag_moves.c.name == move.name) & (tag_moves.c.tag == move.tag)
        last = select(tag_moves.c.digest).where(same).order_by(tag_moves.c.id.desc()).limit(1)
        with index.translated(), index.engine.begin() as connection:
            if index.engine.dialect.name == "postgresql":  # SQLite has one writer at a time already
                connection.execute(select(func.pg_advisory_xact_lock(func.hashtext(move.name))))
            if connection.execute(last).scalar() != before:
                where = f"{move.name}@{move.tag}"
                raise UsageError(
                    f"the tag {where} has been moved meanwhile", hint=f"`catena log {move.name}` shows it."
                )
            connection.execute(insert(tag_moves).values(name=move.name, tag=move.tag, digest=to, moved=now(), by=by))
