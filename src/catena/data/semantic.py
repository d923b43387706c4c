"""`data.dedup_semantic`: of documents that mean the same in other words, one goes on.

    texts -> vectors (`embed`) -> near neighbours -> components (`lsh`) -> chosen (`clusters`) -> rows and rejects

Put it after `data.dedup`, which is exact and cheap. What is "the same" depends on the vectors: try a threshold on a
sample and read the rejects, each names its partner and the similarity.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pydantic import Field

from catena.core.config import Config
from catena.core.registry import require
from catena.core.stage import Context, stage
from catena.core.types import DatasetVersion, ModelVersion

if TYPE_CHECKING:
    from catena.data.embed import Vectors

# Vectors that are held against all others at once.
BLOCK = 256


class SemanticConfig(Config):
    threshold: float = Field(default=0.9, gt=0, le=1)
    """Least cosine of two documents' vectors to count as the same. A language model's are close: ask for more."""
    dimensions: int = Field(default=256, ge=2, le=4096)
    """Dimensions that TF-IDF is reduced to; a model has its own."""
    exact_below: int = Field(default=20_000, ge=0)
    """Up to this many rows all pairs are compared; beyond, an index (HNSW) finds each row's neighbours."""
    neighbours: int = Field(default=32, ge=1, le=1000)
    """Neighbours of each row that the index is asked for; copies of one text beyond this many are found in a chain."""
    max_tokens: int = Field(default=512, ge=8)
    """Tokens at the beginning of a document that a model reads."""
    batch: int = Field(default=16, ge=1)
    """Documents that a model reads at once."""


def near_pairs(vectors: Vectors, threshold: float) -> Iterator[Any]:
    """Yield the pairs [pairs, 2] with a product of at least `threshold`, from all pairs, some rows at a time."""
    import numpy as np

    for start in range(0, len(vectors), BLOCK):
        products = vectors[start : start + BLOCK] @ vectors[start:].T
        first, second = np.nonzero(products >= threshold)
        yield np.stack((first, second), axis=1)[first < second] + start


def neighbour_pairs(vectors: Vectors, threshold: float, neighbours: int) -> Iterator[Any]:
    """Yield such pairs among each row's nearest neighbours; the rows enter the index one by one, for one result."""
    import numpy as np

    index = require("usearch.index", "data").Index(ndim=vectors.shape[1], metric="ip", dtype="f32")
    index.add(np.arange(len(vectors)), vectors, threads=1)
    for start in range(0, len(vectors), BLOCK * 16):
        part = vectors[start : start + BLOCK * 16]
        found = index.search(part, min(neighbours + 1, len(vectors)))
        first = np.repeat(np.arange(start, start + len(part)), found.counts)
        second = np.concatenate([keys[:count] for keys, count in zip(found.keys, found.counts, strict=True)])
        pairs = np.stack((first, second.astype(np.int64)), axis=1)
        products = np.einsum("ij,ij->i", vectors[pairs[:, 0]], vectors[pairs[:, 1]])
        yield pairs[(products >= threshold) & (pairs[:, 0] != pairs[:, 1])]


def _vectors(ctx: Context, cfg: SemanticConfig, source: DatasetVersion, model: ModelVersion | None) -> Vectors:
    import numpy as np

    from catena.data.embed import model_vectors, tfidf_vectors

    samples = ctx.store.open_dataset(source).samples()
    texts = (sample.text for sample in ctx.progress("Embed", source.rows, "documents").over(samples))
    if model is None:
        return tfidf_vectors(texts, cfg.dimensions, ctx.seed)
    parts = list(model_vectors(ctx.store.checkout(model), texts, cfg.max_tokens, cfg.batch))
    return np.concatenate(parts) if parts else np.zeros((0, 1), dtype=np.float32)


@stage("data.dedup_semantic")
def dedup_semantic(
    ctx: Context, cfg: SemanticConfig, *, source: DatasetVersion, model: ModelVersion | None = None
) -> DatasetVersion:
    """Keep one of each group of documents that mean the same; the others say which one was kept for them, and how near.

    The vectors come from TF-IDF and SVD of the documents themselves, or from `model`.
    """
    import numpy as np

    from catena.data.clusters import choose
    from catena.data.duplicates import ranks
    from catena.data.lsh import Bands

    vectors = _vectors(ctx, cfg, source, model)
    links = Bands(len(vectors), lambda pairs: np.ones(len(pairs), dtype=np.bool_))
    exact = len(vectors) <= cfg.exact_below
    pairs = near_pairs(vectors, cfg.threshold) if exact else neighbour_pairs(vectors, cfg.threshold, cfg.neighbours)
    for some in ctx.progress("Compare", None, "blocks").over(pairs):
        links.join(some)
    dataset = ctx.store.open_dataset(source)
    lengths = np.fromiter((len(sample.text) for sample in dataset.samples()), dtype=np.int64, count=source.rows)
    ids = dataset.table(["_id"]).column("_id")
    found = choose(
        links.labels,
        ranks(lengths, ids),
        lambda first, second: float(vectors[first] @ vectors[second]),
        cfg.threshold,
    )
    with ctx.store.new_dataset(source.shape, license=source.license) as out:
        samples = dataset.samples()
        for place, sample in enumerate(ctx.progress("Write", source.rows, "documents").over(samples)):
            kept = int(found.kept_for[place])
            if kept < 0:
                out.add(sample)
            else:
                detail = f"of {ids[kept].as_py()}, similarity {found.similarity[place]:.3f}"
                out.reject(sample, "semantic_duplicate", detail)
        return out.commit(profile={"semantic": {"clusters": found.clusters, "untried": found.untried}})
