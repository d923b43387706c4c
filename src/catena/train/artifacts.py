"""What the training stages read and write: samples of a split, and a finished model folder for the store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from catena.core.config import Config
from catena.core.digest import digest_of
from catena.core.errors import DataError
from catena.core.sample import Sample
from catena.core.stage import Context
from catena.core.types import ArtifactBase, DatasetVersion, ModelVersion, Shape
from catena.hub.fields import check_fields, near, need_shape
from catena.models.adapters import AdapterConfig

if TYPE_CHECKING:
    from catena.train.encode import Encoding
    from catena.train.tokens import Tokens

UNKNOWN = "unknown_tokens"
"""Count of tokens of a text that stand for a character which the vocabulary lacks."""


def check_split(data: DatasetVersion, split: str, shape: Shape) -> int:
    """Return how many samples a split has; of an undivided dataset, `train` is all of it.

    Raises `UsageError` for a dataset of another shape and `DataError` where the split holds nothing.
    """
    need_shape(data, shape, what="data")
    meant = data.split_of(split)
    if meant in data.splits and data.splits[meant].rows:
        return data.splits[meant].rows
    present = ", ".join(f"{name} ({facts.rows})" for name, facts in data.splits.items()) or "nothing"
    hint = f"It holds: {present}. Set split to one of them, or divide it with data.split."
    raise DataError(f"the dataset has no samples in the split {split!r}", hint=hint)


def read_split(ctx: Context, data: DatasetVersion, split: str, shape: Shape) -> list[Sample]:
    """Return the samples of one split, in order; raises as `check_split` does."""
    check_split(data, split, shape)
    return [checked(shape, sample) for sample in ctx.store.open_dataset(data).samples(data.split_of(split))]


def checked(shape: Shape, sample: Sample) -> Sample:
    """Return a sample that holds what its shape must hold; raises `DataError` with its id and field for any other."""
    from catena.models.chat import ROLES

    who = f"the sample {sample.id}"
    check_fields(shape, sample.data, who)
    for turn in sample.data["messages"] if shape == "conversation" else ():
        if turn["role"] not in ROLES:
            hint = f"{near(turn['role'], ROLES)}Roles are {', '.join(ROLES)}."
            raise DataError(f"the role {turn['role']!r} in {who} is unknown", hint=hint)
    return sample


def encode_split(ctx: Context, role: str, data: DatasetVersion, split: str, *, plan: Encoding, words: Any) -> Tokens:
    """Return the tokens of one split, encoded now or by a run before; what was done to samples is counted and logged.

    `role` names the files (one stage may read several splits). Raises as `check_split` does, and `DataError` for a
    sample that cannot be encoded or that the policy refuses.
    """
    from catena.train.shards import token_shards

    count = check_split(data, split, plan.shape)
    field = {"document": "text", "conversation": "messages"}[plan.shape]
    samples = ctx.store.open_dataset(data).samples(data.split_of(split))
    items = (checked(plan.shape, sample).data[field] for sample in samples)
    tokens = token_shards(ctx, role, plan, words, items, (digest_of([data.digest, split]), count))
    for reason, number in tokens.counts.items():
        ctx.events.metric(reason, number)
        limit = f" (context {plan.longest})" if plan.longest else ""
        what = f"{number} of {count} {plan.shape}s: {reason}" if reason != UNKNOWN else f"{number} {reason}"
        ctx.events.log(f"{what.replace('_', ' ')}{limit}")
    return tokens


def fingerprint(ctx: Context, config: Config, *inputs: ArtifactBase) -> str:
    """Return what tells this training from any other: its config, seed and inputs.

    How the work is shared is left out: a checkpoint of two processes may be gone on from by one.
    """
    return digest_of([config.deciding(), ctx.seed, [item.digest for item in inputs]])


def seed_of(ctx: Context) -> int:
    """Return the seed as the number, not negative, that random generators take."""
    return ctx.seed % 2**63


def license_of(*inputs: ArtifactBase | None) -> str | None:
    """Return the licences that something made of these inputs is under, as an SPDX expression."""
    names = sorted({item.license for item in inputs if item is not None and item.license})
    return " AND ".join(names) or None


def store_trained(
    ctx: Context, model: Any, tokenizer: Any, license: str | None, adapter: AdapterConfig, base: ModelVersion
) -> ModelVersion:
    """Put what was trained into the store: the whole model, or the adapter that was put on `base`."""
    from catena.models import adapter_folder, checkpoint

    if adapter.kind == "none":
        return store_model(ctx, model, tokenizer, license)
    with ctx.store.temporary_folder() as folder:
        adapter_folder.save(model, tokenizer, folder, base.digest, adapter.base)
        facts = checkpoint.describe(folder)
        return ctx.store.put_model(folder, "adapter", base=base.digest, license=license, **facts)


def store_model(ctx: Context, model: Any, tokenizer: Any, license: str | None) -> ModelVersion:
    """Write a model with its tokenizer as a folder and put it into the store."""
    from catena.models import checkpoint

    with ctx.store.temporary_folder() as folder:
        checkpoint.save(model, tokenizer, folder)
        return ctx.store.put_model(folder, "full", license=license, **checkpoint.describe(folder))
