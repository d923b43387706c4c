"""Rewriting a table without some rows: the versions that shared it share the new one, and change only where they must.

The oldest revision is written anew; each later one is a revision of the one before wherever its order allows that (see
`hub.revisions`), else a table of its own.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as compute

from catena.core.events import Progress
from catena.core.types import DatasetVersion
from catena.hub.datasets import Dataset, DatasetWriter
from catena.hub.diff import ABSENT, Positions, align
from catena.hub.revisions import write_revision
from catena.hub.store import Store


def rewrite_table(
    store: Store, versions: Iterable[DatasetVersion], ids: frozenset[str], mark: str, progress: Progress
) -> dict[str, DatasetVersion]:
    """Write the versions of one table without the rows `ids`, into folders that end in `mark`; returns old to new.

    May be called again after a kill: what was finished is used, what was begun is written over.
    """
    done: dict[str, DatasetVersion] = {}
    before: Dataset | None = None
    for version in sorted(versions, key=lambda version: version.revision):
        opened = store.open_dataset(version)
        names = opened.open_table().to_table(columns=["_id"])["_id"]
        stays = ~compute.is_in(names, value_set=pa.array(sorted(ids), names.type)).to_numpy(zero_copy_only=False)
        change = None if before is None else as_change(before.hashes(), opened.hashes()[stays])
        if before is None or change is None:
            written = _copy(store, opened, ids, mark)
        else:
            removed, start = change
            places = np.flatnonzero(stays)[start:]
            written = write_revision(store, before, removed, opened.take(places))
        written = written.model_copy(
            update={"created": version.created, "made_by": version.made_by, "parents": version.parents}
        )
        done[version.digest] = written
        before = Dataset(store.datasets / written.table, written)
        progress.advance(version.rows)
    return done


def as_change(base: npt.NDArray[np.uint64], wanted: npt.NDArray[np.uint64]) -> tuple[Positions, int] | None:
    """Return what makes `wanted` of `base`: the positions that go, and where in `wanted` the added rows begin.

    Both are hashes in order, `[rows, 4]`. None where it cannot be said so: rows stand in another order.
    """
    old, new = align(*(_as_column(side) for side in (base, wanted)))
    both = np.flatnonzero((old != ABSENT) & (new != ABSENT))
    order = both[np.argsort(old[both], kind="stable")]
    if not np.array_equal(new[order], np.arange(len(order))):
        return None
    return np.sort(old[(new == ABSENT) & (old != ABSENT)]), len(order)


def _as_column(hashes: npt.NDArray[np.uint64]) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array([row.tobytes().hex() for row in hashes], pa.large_string())])


def _copy(store: Store, opened: Dataset, ids: frozenset[str], mark: str) -> DatasetVersion:
    version = opened.version
    funnel = version.funnel
    gone = 0
    with DatasetWriter(store.datasets, version.shape, version.license, mark=mark) as writer:
        for sample in opened.samples():
            if sample.id in ids:
                gone += 1
            else:
                writer.add(sample)
        for sample, reason, detail in opened.rejects():
            if sample.id in ids:
                gone += 1
            else:
                writer.reject(sample, reason, detail, shape=opened.reject_shape)
        return writer.commit(
            rows_in=max(funnel.rows_in - gone, 0) if funnel else None,
            changed=funnel.changed if funnel else None,
            profile={name: value for name, value in version.profile.items() if name != "funnel"},
            labels=version.labels,
        )
