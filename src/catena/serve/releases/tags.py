"""The tag that a release moves: a model that the deploy file names as `name@tag` is promoted by moving that tag in the
workspace's store, so that everybody who asks for `helper@production` gets what users get."""

from __future__ import annotations

from dataclasses import dataclass

from catena.core.errors import CatenaError
from catena.core.types import ModelVersion
from catena.hub.store import Store


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
        self._store.index.move_tag(move.name, move.tag, move.after, by, before=move.before)

    def back(self, move: Move, by: str) -> bool:
        """Put it back; tells whether it was where the promotion had put it."""
        try:
            self._store.index.move_tag(move.name, move.tag, move.before, by, before=move.after)
        except CatenaError:
            return False
        return True

    def went(self, move: Move) -> bool:
        """Tell whether a move was made."""
        return self._store.index.tags(move.name).get((move.name, move.tag)) == move.after
