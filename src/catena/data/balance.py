"""`data.balance`: classes of unequal size, evened out by copies, by keeping rows back, or by weights.

Random over- and under-sampling need a seeded order of the rows and nothing else, so it is done here on streamed rows:
imbalanced-learn's samplers do the same on arrays that hold all of them. Only the training split is touched: copies in
a test set would change what is measured.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from math import ceil
from typing import Literal

from pydantic import Field

from catena.core.config import Config
from catena.core.sample import Sample, sample_id
from catena.core.stage import Context, stage
from catena.core.types import DatasetVersion


class BalanceConfig(Config):
    mode: Literal["over", "under", "weights"] = "over"
    """over copies rows of small classes, under keeps rows of large ones back, weights writes metadata.weight."""
    by: str = Field("output", min_length=1)
    """What a row's class is: a field of its data (`output`), or a path in its metadata (`fields.topic`)."""
    ratio: float = Field(1.0, gt=0, le=1)
    """Size of the smallest class over that of the largest that is aimed at; 1 makes all equally large."""
    max_copies: int = Field(10, ge=1)
    """With over, how often one row may stand in the result at most, itself included."""
    split: str = "train"
    """Rows of other splits go on untouched; rows without a split are balanced."""


def class_of(sample: Sample, by: str) -> str:
    """Return the class that a row is in, or an empty text where it has none."""
    value = sample.value(by)
    return "" if value is None else str(value).strip()


def targets(sizes: Mapping[str, int], cfg: BalanceConfig) -> dict[str, int]:
    """Return how many rows each class should have."""
    if not sizes:
        return {}
    if cfg.mode == "over":
        least = ceil(cfg.ratio * max(sizes.values()))
        return {name: max(size, min(least, size * cfg.max_copies)) for name, size in sizes.items()}
    if cfg.mode == "under":
        most = int(min(sizes.values()) / cfg.ratio)
        return {name: min(size, most) for name, size in sizes.items()}
    return dict(sizes)


def weights(sizes: Mapping[str, int]) -> dict[str, float]:
    """Return rows / (classes * rows of the class) for each class: every class weighs the same, the mean row 1."""
    total = sum(sizes.values())
    return {name: round(total / (len(sizes) * size), 6) for name, size in sizes.items()}


def shares(members: Mapping[str, list[str]], wanted: Mapping[str, int], seed: int) -> dict[str, int]:
    """Return how often each row (by id) stands in the result: its class's share, the rest in a random order."""
    found: dict[str, int] = {}
    for name, ids in members.items():
        whole, rest = divmod(wanted[name], len(ids))
        chosen = sorted(ids, key=lambda row: sample_id(seed, "balance", row))[:rest]
        found.update(dict.fromkeys(ids, whole))
        for row in chosen:
            found[row] += 1
    return found


def _copies(sample: Sample, count: int) -> list[Sample]:
    """Return the sample and its copies; a copy has an id of its own and the sample as parent."""
    further = range(1, count)
    return [
        sample,
        *(
            sample.derive(sample.data, key=f"copy/{number}", metadata={**sample.metadata, "copy": number})
            for number in further
        ),
    ]


@stage("data.balance")
def balance(ctx: Context, cfg: BalanceConfig, *, source: DatasetVersion) -> DatasetVersion:
    """Even out the classes of the training rows: by copies, by keeping rows back, or by a weight for each row."""
    opened = ctx.store.open_dataset(source)
    members: dict[str, list[str]] = {}
    repeated: Counter[str] = Counter()
    for sample in opened.samples():
        if sample.split in (None, cfg.split) and (name := class_of(sample, cfg.by)):
            # Two rows may share an id; its further rows are told apart by their number.
            members.setdefault(name, []).append(f"{sample.id}/{repeated[sample.id]}")
            repeated[sample.id] += 1
    sizes = {name: len(ids) for name, ids in sorted(members.items())}
    wanted, weight = targets(sizes, cfg), weights(sizes)
    times, seen = shares(members, wanted, ctx.seed), Counter[str]()
    with ctx.store.new_dataset(source.shape, license=source.license) as out:
        for sample in ctx.progress("Balance", source.rows).over(opened.samples()):
            name = class_of(sample, cfg.by)
            if sample.split not in (None, cfg.split):
                out.add(sample)
            elif not name:
                out.reject(sample, "no_label", cfg.by)
            elif cfg.mode == "weights":
                out.add(replace(sample, metadata={**sample.metadata, "weight": weight[name]}))
            else:
                count = times[f"{sample.id}/{seen[sample.id]}"]
                seen[sample.id] += 1
                if not count:
                    out.reject(sample, "undersampled", name)
                for row in _copies(sample, count) if count else ():
                    out.add(row)
        classes = {name: {"before": sizes[name], "after": wanted[name], "weight": weight[name]} for name in sizes}
        copies = sum(wanted[name] - size for name, size in sizes.items() if wanted[name] > size)
        changed = {"copied": copies} if copies else {}
        return out.commit(rows_in=source.rows, changed=changed, profile={"classes": classes})
