"""What the training stages read and write: samples of a split, and a finished model folder for the store."""

from __future__ import annotations

from typing import Any

from catena.core.config import Config
from catena.core.digest import digest_of
from catena.core.errors import DataError, UsageError
from catena.core.sample import Sample
from catena.core.stage import Context
from catena.core.types import ArtifactBase, DatasetVersion, ModelVersion, Shape


def read_split(ctx: Context, data: DatasetVersion, split: str, shape: Shape) -> list[Sample]:
    """Return the samples of one split, in order.

    Raises `UsageError` for a dataset of another shape and `DataError` where the split holds nothing.
    """
    if data.shape != shape:
        raise UsageError(f"this needs a dataset of the shape {shape!r}; {data.digest[:12]} has {data.shape!r}")
    samples = list(ctx.store.open_dataset(data).samples(split))
    if not samples:
        present = ", ".join(f"{name} ({facts.rows})" for name, facts in data.splits.items()) or "nothing"
        raise DataError(f"the dataset has no samples in the split {split!r}", hint=f"It holds: {present}.")
    return samples


def fingerprint(ctx: Context, config: Config, *inputs: ArtifactBase) -> str:
    """Return what tells this training from any other: its config, seed and inputs."""
    return digest_of([config.digest(), ctx.seed, [item.digest for item in inputs]])


def seed_of(ctx: Context) -> int:
    """Return the seed as the number, not negative, that random generators take."""
    return ctx.seed % 2**63


def license_of(*inputs: ArtifactBase | None) -> str | None:
    """Return the licences that something made of these inputs is under, as an SPDX expression."""
    names = sorted({item.license for item in inputs if item is not None and item.license})
    return " AND ".join(names) or None


def store_model(ctx: Context, model: Any, tokenizer: Any, license: str | None) -> ModelVersion:
    """Write a model with its tokenizer as a folder and put it into the store."""
    from catena.models import checkpoint

    with ctx.store.temporary_folder() as folder:
        checkpoint.save(model, tokenizer, folder)
        return ctx.store.put_model(folder, "full", license=license, **checkpoint.describe(folder))
