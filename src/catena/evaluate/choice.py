"""Which samples of a split are measured: all, or a number of them chosen by hash, the same for every model."""

from __future__ import annotations

from collections.abc import Iterable

from catena.core.errors import DataError, UsageError, did_you_mean
from catena.core.generate import GENERATORS
from catena.core.sample import Sample, sample_id
from catena.core.types import DatasetVersion
from catena.hub.store import Store


def known_generator(name: str) -> str:
    """Pass on a generator's name; raises `ValueError` for one that is none, as a config's check does."""
    if name not in GENERATORS:
        raise ValueError(f"there is no generator {name!r}. {did_you_mean(name, GENERATORS)}")
    return name


def chosen(samples: Iterable[Sample], limit: int | None, seed: int) -> list[Sample]:
    """Return at most `limit` samples in their stored order; which ones depends on their ids and the seed only."""
    everything = list(samples)
    if limit is None or len(everything) <= limit:
        return everything
    keep = set(sorted((sample.id for sample in everything), key=lambda name: sample_id(seed, name))[:limit])
    return [sample for sample in everything if sample.id in keep]


def samples_of(store: Store, data: DatasetVersion, split: str) -> list[Sample]:
    """Return the samples of one split; `all` is the whole of a dataset without splits.

    Raises `UsageError` for a split that the dataset does not have, and `DataError` for one without samples.
    """
    if split not in data.splits and data.rows:
        raise UsageError(f"the dataset has no split {split!r}", hint=did_you_mean(split, data.splits))
    samples = list(store.open_dataset(data).samples(None if split == "all" else split))
    if not samples:
        raise DataError(
            f"the split {split!r} holds no samples: there is nothing to measure",
            hint="Look at what the steps before kept back: catena show NAME --rejects",
        )
    return samples
