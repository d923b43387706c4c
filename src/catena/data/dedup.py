"""`data.dedup`: of documents that say the same, one goes on; each of the others names the one that was kept for it.

First equal texts (after case, width and white space), then near-duplicates by MinHash with exact verification. A
document leaves only for a kept one that is really as similar as asked: a chain of neighbours never takes it along.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from pydantic import Field

from catena.core.config import Config
from catena.core.digest import sha256
from catena.core.stage import Context, stage
from catena.core.types import DatasetVersion
from catena.data.words import folded


class Duplicate(NamedTuple):
    """Why a document leaves: the place of the one that is kept for it, and how alike they are."""

    reason: str
    kept: int
    similarity: float


class Duplicates(NamedTuple):
    """What `find_duplicates` found."""

    removed: dict[int, Duplicate]
    """By place of the document that leaves."""
    candidates: int
    """Pairs that were verified."""
    clusters: int
    """Groups of connected near-duplicates with at least two members."""


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


def find_duplicates(texts: Sequence[str], ids: Sequence[str], cfg: DedupConfig) -> Duplicates:
    """Return which texts leave and for whom. The longest of a group stays; of equally long ones, the lowest id."""
    rank = {place: (-len(text), ids[place]) for place, text in enumerate(texts)}
    removed = _equal_texts(texts, rank)
    if not cfg.near:
        return Duplicates(removed, 0, 0)
    # Daft and scipy take a third of a second to import: not for the check of a recipe.
    from catena.data.minhash import Verified, components, read_words

    words = {place: found for place, found in read_words(texts).items() if place not in removed}
    verified = Verified(words, cfg.ngram)
    pairs, tried = verified.pairs(cfg.bands, cfg.rows, cfg.threshold)
    clusters = [group for group in components(len(texts), pairs) if len(group) > 1]
    for group in clusters:
        kept: list[int] = []
        for place in sorted(group, key=rank.__getitem__):
            similarity, best = max(((verified.similarity(place, other), -other) for other in kept), default=(0.0, 0))
            if similarity >= cfg.threshold:
                removed[place] = Duplicate("near_duplicate", -best, similarity)
            else:
                kept.append(place)
    return Duplicates(removed, tried, len(clusters))


def _equal_texts(texts: Sequence[str], rank: dict[int, tuple[int, str]]) -> dict[int, Duplicate]:
    groups: dict[str, list[int]] = {}
    for place, text in enumerate(texts):
        same = folded(text)
        if same:  # to be empty is not to be a copy of another empty text
            groups.setdefault(sha256(same.encode()), []).append(place)
    removed: dict[int, Duplicate] = {}
    for group in groups.values():
        kept, *others = sorted(group, key=rank.__getitem__)
        removed.update((place, Duplicate("exact_duplicate", kept, 1.0)) for place in others)
    return removed


@stage("data.dedup")
def dedup(ctx: Context, cfg: DedupConfig, *, source: DatasetVersion) -> DatasetVersion:
    """Keep one of each group of equal or nearly equal documents; the others say which one was kept for them."""
    samples = list(ctx.store.open_dataset(source).samples())
    progress = ctx.progress("Deduplicate", len(samples), "documents")
    ids = [sample.id for sample in samples]
    found = find_duplicates([sample.text for sample in samples], ids, cfg)
    with ctx.store.new_dataset(source.shape, license=source.license) as out:
        for place, sample in enumerate(progress.over(samples)):
            duplicate = found.removed.get(place)
            if duplicate is None:
                out.add(sample)
            else:
                out.reject(sample, duplicate.reason, f"of {ids[duplicate.kept]}, similarity {duplicate.similarity:.3f}")
        ctx.events.metric("candidates", found.candidates)
        return out.commit(profile={"duplicates": {"candidates": found.candidates, "clusters": found.clusters}})
