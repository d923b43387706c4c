"""What people changed of a dataset that a source brought: it stays as they left it when the source is asked again.

    the last version that a run made --\\
    the newest version ----------------> ByHand --> its rows in the source's order, keys of what people changed

Which keys those are stands in the profile of each version that is made from then on.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from itertools import chain
from typing import Any

import numpy as np

from catena.core.errors import DataError
from catena.core.sample import Sample
from catena.core.stage import Context
from catena.core.types import DatasetVersion
from catena.hub.commits import MAIN
from catena.hub.datasets import Dataset
from catena.hub.rows import to_sample

PROFILE = "by_hand"


class ByHand:
    """The version that a run goes on from, or nothing."""

    def __init__(
        self,
        ctx: Context,
        version: DatasetVersion | None,
        key: Callable[[Sample], str],
        place: Callable[[Sample], Any] | None = None,
    ) -> None:
        """`key` tells what the source calls a row (nothing for a row that is not of it), `place` its order."""
        self.opened = ctx.store.open_dataset(version) if version is not None else None
        self.keys: set[str] = set(version.profile.get(PROFILE, ())) if version is not None else set()
        """Of rows that people changed, added or took out."""
        self._place, self._moved = place or key, False
        made = _made_by_run(ctx) if version is not None else None
        if self.opened is None or version is None or made in (None, version.digest):
            return
        self._moved = True  # what is changed stands at the end
        last = ctx.store.index.artifact(str(made))
        if isinstance(last, DatasetVersion):
            pairs = (ctx.store.open_dataset(last), self.opened)
            self.keys.update(key(row) for row in chain(_only(*pairs), _only(*reversed(pairs))))
        else:  # swept away, and nobody can tell any more which rows are the source's
            self.keys.update(map(key, self.opened.samples()))

    def rows(self) -> Iterator[Sample]:
        """Yield the samples in the source's order."""
        if self.opened is None:
            return
        if not self._moved:
            yield from self.opened.samples()
            return
        places = [self._place(sample) for sample in self.opened.samples()]
        order = np.array(sorted(range(len(places)), key=places.__getitem__), dtype=np.int64)
        yield from map(to_sample, self.opened.take(order))

    def profile(self, gone: Collection[str] = ()) -> dict[str, Any]:
        """Return what the next version's profile says of it; what is `gone` is nobody's any more."""
        left = sorted(self.keys.difference(gone))
        return {PROFILE: left} if left else {}


def from_the_start(ctx: Context, version: DatasetVersion, key: Callable[[Sample], str]) -> None:
    """Say that all is collected from the start. Raises `DataError` where that would lose what people changed."""
    changed = ByHand(ctx, version, key).keys
    why = f"the newest version of {ctx.name} came from another source or config"
    if changed:
        raise DataError(
            f"{why}, and people changed {len(changed)} of its rows: collecting from the start would lose that",
            hint="Give the step another name, or the config that it had. Nothing was changed.",
        )
    ctx.events.log(f"{why}: collected from the start")


def _made_by_run(ctx: Context) -> str | None:
    """Return the digest of the last version of the output's name that a run made, behind all that people committed."""
    history, standing = ctx.store.index.history(ctx.name)
    at = standing.get(MAIN)
    while at in history and history[at].operation in ("commit", "merge"):
        at = next(iter(history[at].parents), None)
    return history[at].dataset if at in history else None


def _only(first: Dataset, second: Dataset) -> Iterator[Sample]:
    """Yield the rows of one dataset that another lacks."""
    ours, theirs = (np.ascontiguousarray(one.hashes()).view("V32").ravel() for one in (first, second))
    yield from map(to_sample, first.take(np.flatnonzero(~np.isin(ours, theirs))))
