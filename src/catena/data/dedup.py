"""`data.dedup`: of documents that say the same, one goes on; each of the others names the one that was kept for it.

    rows -> signed in shards (`signing`) -> linked band by band (`lsh`) -> chosen (`clusters`) -> rows and rejects

First equal texts (after case, width and white space), then near-duplicates by MinHash with exact verification. A
document leaves only for a kept one that is really as similar as asked: a chain of neighbours never takes it along.
Texts stay on disk, memory is some 150 bytes a row, and any number of workers, here or on Ray, gives the same result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Self

import pyarrow as pa
from pydantic import Field

from catena.core.config import Config
from catena.core.stage import Context, stage
from catena.core.types import DatasetVersion

if TYPE_CHECKING:
    from catena.data.duplicates import Duplicates
    from catena.data.signing import SignConfig


class DedupConfig(Config):
    threshold: float = Field(default=0.9, gt=0, le=1)
    """Least Jaccard similarity of the word shingles of two near-duplicates."""
    ngram: int = Field(default=5, ge=1, le=50)
    """Words in a shingle (characters, in Chinese, Japanese and Korean)."""
    bands: int = Field(default=32, ge=1)
    """Bands of the signature: with 8 rows, 32 bands find 99.7 % of the pairs at 0.8, and all at 0.9 but 1.5e-8."""
    rows: int = Field(default=8, ge=1)
    """Hashes in a band; more bands find more, more rows verify less."""
    near: bool = True
    """Look for near-duplicates too, not only for equal texts."""
    previous: bool = False
    """Reject what duplicates a row of any version stored under the output's name: only what is new goes on."""
    stored: tuple[str, ...] | None = Field(default=None, exclude_if=lambda value: value is None)
    """Digests of these versions; filled in before the step."""
    workers: int = Field(default=0, ge=0, exclude=True)
    """Processes that sign; 0 for one per processor. The result is the same for any number, so no step runs again."""

    def after(self, stored: Callable[[], tuple[str, ...]]) -> Self:
        """Return these values with the versions that count as seen."""
        return self.model_copy(update={"stored": stored()}) if self.previous and self.stored is None else self


def find_duplicates(texts: Sequence[str], ids: Sequence[str], cfg: DedupConfig) -> Duplicates:
    """Find the duplicates among texts in memory: what the stage does, for a notebook or another stage."""
    from catena.data.duplicates import find, ranks
    from catena.data.signing import SignedTexts

    signed = SignedTexts(texts, _signing(cfg))
    rank = ranks(signed.facts["length"], pa.array(ids, pa.string()))
    return find(signed, rank, cfg.bands if cfg.near else 0, cfg.threshold)


def _signing(cfg: DedupConfig) -> SignConfig:
    from catena.data.signing import SignConfig

    return SignConfig(ngram=cfg.ngram, bands=cfg.bands if cfg.near else 0, rows=cfg.rows)


def older_than(ctx: Context, cfg: DedupConfig, against: DatasetVersion | None) -> list[DatasetVersion]:
    """Return the stored datasets whose rows count as seen: `against`, and what was stored under the output's name."""
    found = {} if against is None else {against.digest: against}
    for digest in cfg.stored or ():
        artifact = ctx.store.resolve(digest)
        if isinstance(artifact, DatasetVersion):
            found[digest] = artifact
    return list(found.values())


def _sign(ctx: Context, cfg: DedupConfig, dataset: DatasetVersion) -> list[Path]:
    from catena.data.shards import work_shards

    operation = "catena.data.signing:sign_shard"
    return work_shards(ctx, dataset, operation, _signing(cfg), label="Sign", workers=cfg.workers)


def at(columns: Sequence[pa.ChunkedArray], place: int) -> str:
    """Return the id at a place of several columns, one after another."""
    for column in columns:
        if place < len(column):
            return str(column[place].as_py())
        place -= len(column)
    raise IndexError(place)


@stage("data.dedup")
def dedup(
    ctx: Context, cfg: DedupConfig, *, source: DatasetVersion, against: DatasetVersion | None = None
) -> DatasetVersion:
    """Keep one of each group of equal or nearly equal documents; the others say which one was kept for them.

    Rows that duplicate one of `against`, a stored dataset, are rejected as `duplicate_of_stored`.
    """
    # numpy and scipy take a third of a second to import: not for the check of a recipe.
    from catena.data.duplicates import find, ranks
    from catena.data.signing import SignedShards

    cfg = cfg.after(lambda: tuple(row.digest for row in ctx.store.index.versions(name=ctx.name)))
    bands = cfg.bands if cfg.near else 0
    older = older_than(ctx, cfg, against)
    signed = SignedShards([folder for dataset in (*older, source) for folder in _sign(ctx, cfg, dataset)])
    stored = sum(dataset.rows for dataset in older)
    ids = [ctx.store.open_dataset(dataset).table(["_id"]).column("_id") for dataset in (*older, source)]
    rank = ranks(signed.facts["length"], ids[-1], stored)
    compared = ctx.progress("Compare", bands, "bands")
    found = find(signed, rank, bands, cfg.threshold, stored=stored, watch=compared.over)
    with ctx.store.new_dataset(source.shape, license=source.license) as out:
        samples = ctx.store.open_dataset(source).samples()
        for place, sample in enumerate(ctx.progress("Write", source.rows, "documents").over(samples), start=stored):
            kept = int(found.kept_for[place])
            if kept < 0:
                out.add(sample)
                continue
            reason = "exact_duplicate" if found.equal[place] else "near_duplicate"
            detail = f"of {at(ids, kept)}, similarity {found.similarity[place]:.3f}"
            out.reject(sample, "duplicate_of_stored" if kept < stored else reason, detail)
        ctx.events.metric("candidates", found.candidates)
        return out.commit(profile={"duplicates": found.profile()})
