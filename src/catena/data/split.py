"""`data.split`: train, validation and test, so that nothing in one is nearly the same as something in another.

    rows -> signed in shards (`signing`) -> linked band by band (`lsh`), and by key -> groups -> splits -> rows

Near-duplicates, and rows with the same key, form a group; a group goes to one split as a whole, also where every split
is to have the same mix of classes. Texts stay on disk: memory is some hundred bytes a row, however long the rows are.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import TYPE_CHECKING

from pydantic import Field, field_validator

from catena.core.config import Config
from catena.core.errors import DataError
from catena.core.sample import Sample, dig, sample_id
from catena.core.stage import Context, stage
from catena.core.types import DatasetVersion

if TYPE_CHECKING:
    from catena.data.signing import Signed


class SplitConfig(Config):
    ratios: dict[str, float] = Field(default_factory=lambda: {"train": 0.8, "validation": 0.1, "test": 0.1})
    """Name of each split and its share of the rows; the shares add up to 1."""
    similarity: float = Field(0.5, gt=0, le=1)
    """Documents at least this alike (Jaccard of word shingles) stay together."""
    ngram: int = Field(5, ge=1, le=50)
    """Words in a shingle (characters, in Chinese, Japanese and Korean)."""
    bands: int = Field(64, ge=1)
    """Bands of the signature: with 3 rows, 64 bands find 99.98 % of the pairs at 0.5 (and verify 6 % at 0.1)."""
    rows: int = Field(3, ge=1)
    """Hashes in a band; take more (and more bands) for a million documents, or the candidates become too many."""
    group_by_metadata: str = ""
    """Rows with the same value at this place of the metadata (`author`, `fields.author`) stay together."""
    group_by_source: str = ""
    """Rows whose source has the same first group (or whole match) of this regular expression stay together."""

    stratify_by: str = ""
    """Each split gets the same mix of a field of the data (`output`), or of what a path leads to in the metadata."""

    @field_validator("ratios")
    @classmethod
    def _adds_up(cls, ratios: dict[str, float]) -> dict[str, float]:
        if not ratios or any(share < 0 for share in ratios.values()):
            raise ValueError("every split needs a share of 0 or more")
        if abs(sum(ratios.values()) - 1) > 1e-6:
            raise ValueError(f"the shares add up to {sum(ratios.values()):g} instead of 1")
        return ratios

    @field_validator("group_by_source")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"is not a regular expression: {error}") from error
        return pattern


def key_of(sample: Sample, cfg: SplitConfig) -> tuple[str, ...]:
    """Return the keys that tie a row to others: its id, which two rows may have, and those that the config asks for."""
    keys = [f"id:{sample.id}"]
    tied = dig(sample.metadata, cfg.group_by_metadata) if cfg.group_by_metadata else None
    if tied is not None:
        keys.append(f"metadata:{tied}")
    match = re.search(cfg.group_by_source, sample.source) if cfg.group_by_source else None
    if match:
        keys.append(f"source:{match[1] if match.re.groups else match[0]}")
    return tuple(keys)


def assign(sizes: Mapping[str, int], ratios: Mapping[str, float]) -> dict[str, str]:
    """Return the split of each group, the row counts as near to the ratios as whole groups allow.

    Larger groups choose first, so that the small ones can fill up; groups of one size go by their name, which is a hash
    and thus chance. The split with the most room takes the next group. A split is empty only if there are fewer groups
    than splits.
    """
    total = sum(sizes.values())
    room = {name: share * total for name, share in ratios.items() if share > 0}
    chosen: dict[str, str] = {}
    for group in sorted(sizes, key=lambda name: (-sizes[name], name)):
        split = max(room, key=room.__getitem__)
        chosen[group] = split
        room[split] -= sizes[group]
    return without_empty(chosen, sizes, list(room))


def without_empty(chosen: dict[str, str], sizes: Mapping[str, int], splits: Sequence[str]) -> dict[str, str]:
    """Give each empty split the smallest group of the split with most groups, while that has more than one."""
    for split in splits:
        held = Counter(chosen.values())
        if split not in held and held and max(held.values()) > 1:
            giver = max(held, key=held.__getitem__)
            moved = min((group for group in chosen if chosen[group] == giver), key=lambda name: (sizes[name], name))
            chosen[moved] = split
    return chosen


def stratum_of(sample: Sample, key: str) -> str:
    """Return the class that a row is in; rows without one are a class of their own."""
    value = sample.value(key)
    return "" if value is None else str(value)


def assign_evenly(mixes: Mapping[str, Counter[str]], ratios: Mapping[str, float]) -> dict[str, str]:
    """Return the split of each group, given its rows by class, so that every split gets its share of every class.

    A greedy form of iterative stratification (Sechidis et al. 2011) for whole groups: of the largest groups first, each
    goes where its classes lack most rows; among equals, where most rows are lacking at all.
    """
    totals: Counter[str] = sum(mixes.values(), Counter())
    room = {name: {key: share * count for key, count in totals.items()} for name, share in ratios.items() if share > 0}
    chosen: dict[str, str] = {}
    for group in sorted(mixes, key=lambda name: (-mixes[name].total(), name)):
        lacking = {
            name: (
                round(sum(rows * left[key] / totals[key] for key, rows in mixes[group].items()), 9),
                round(sum(left.values()), 9),
            )
            for name, left in room.items()
        }
        split = max(lacking, key=lacking.__getitem__)
        chosen[group] = split
        for key, rows in mixes[group].items():
            room[split][key] -= rows
    return without_empty(chosen, {name: mix.total() for name, mix in mixes.items()}, list(room))


def group_labels(signed: Signed, keys: Iterable[Sequence[str]], cfg: SplitConfig) -> tuple[list[int], int]:
    """Return for each row the lowest row of its group: near-duplicates (`signed`), and rows that share a key.

    The second number is how many pairs of a crowded bucket were left out (see `lsh`).
    """
    import numpy as np

    from catena.data.lsh import Bands

    members = np.flatnonzero(signed.facts["shingles"] > 0).astype(np.int32)
    links = Bands(len(signed), lambda pairs: signed.similar(pairs, cfg.similarity))
    for number in range(cfg.bands if len(members) > 1 else 0):
        links.add(signed.band(number)[members], members)
    first_with: dict[bytes, int] = {}
    tied = [
        (first_with.setdefault(blake2b(key.encode(), digest_size=16).digest(), place), place)
        for place, own in enumerate(keys)
        for key in own
    ]
    links.join(np.array([pair for pair in tied if pair[0] != pair[1]], dtype=np.int64).reshape(-1, 2))
    return links.labels.tolist(), links.untried


@dataclass
class Group:
    """What is known of rows that must not be parted."""

    first: str
    """The lowest of their ids."""
    mix: Counter[str]
    """Rows by class."""


@stage("data.split")
def split(ctx: Context, cfg: SplitConfig, *, source: DatasetVersion) -> DatasetVersion:
    """Divide documents into train, validation and test; near-duplicates stay together."""
    from catena.data.shards import work_shards
    from catena.data.signing import SignConfig, SignedShards

    if not source.rows:
        raise DataError(
            "there is nothing to split: the dataset is empty", hint="`catena show` lists what was rejected."
        )
    opened = ctx.store.open_dataset(source)
    signing = SignConfig(ngram=cfg.ngram, bands=cfg.bands, rows=cfg.rows)
    signed = SignedShards(work_shards(ctx, source, "catena.data.signing:sign_shard", signing, label="Sign"))
    grouping = ctx.progress("Group", source.rows, "documents")
    labels, untried = group_labels(signed, (key_of(sample, cfg) for sample in grouping.over(opened.samples())), cfg)
    ctx.events.metric("untried_pairs", untried)
    groups: dict[int, Group] = {}
    for label, sample in zip(labels, opened.samples(), strict=True):
        group = groups.setdefault(label, Group(sample.id, Counter()))
        group.first = min(group.first, sample.id)
        group.mix[stratum_of(sample, cfg.stratify_by) if cfg.stratify_by else ""] += 1
    names = {label: sample_id(ctx.seed, group.first) for label, group in groups.items()}
    mixes = {names[label]: group.mix for label, group in groups.items()}
    sizes = {name: mix.total() for name, mix in mixes.items()}
    chosen = assign_evenly(mixes, cfg.ratios) if cfg.stratify_by else assign(sizes, cfg.ratios)
    with ctx.store.new_dataset(source.shape, license=source.license) as out:
        rows = ctx.progress("Split", source.rows, "documents").over(opened.samples())
        for label, sample in zip(labels, rows, strict=True):
            out.add(replace(sample, split=chosen[names[label]]))
        return out.commit(profile={"groups": {"count": len(sizes), "largest": max(sizes.values())}})
