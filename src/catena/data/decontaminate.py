"""`data.decontaminate`: what stands in an evaluation set is taken out of the training rows.

The overlap is that of `overlap`: words in common n-grams of 13 words (Brown et al. 2020, arXiv 2005.14165, appendix C),
of fewer in short items, weighted by how rare they are. Every row that is kept back names the item and the overlap.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice

from pydantic import Field

from catena.core.config import Config
from catena.core.sample import Sample
from catena.core.stage import Context, stage
from catena.core.types import DatasetVersion
from catena.data.overlap import BATCH, Index

COUNTED = 20_000
"""Rows of the source that weights are taken from, spread evenly: rare from common is told by far fewer."""


class DecontaminateConfig(Config):
    ngram: int = Field(13, ge=3, le=50)
    """Words in an n-gram (characters, in Chinese, Japanese and Korean); shorter for items of fewer than three of it."""
    min_ngram: int = Field(5, ge=2, le=50)
    """Shortest n-gram; items with fewer words are not looked for, and counted in the profile."""
    threshold: float = Field(0.75, gt=0, le=1)
    """Least weighted share of an item's words that counts as contamination (of 100 in a row, in a longer item)."""
    split: str = ""
    """Only rows of this split of the source are checked, the others go on; all if empty."""
    against_split: str = ""
    """Only rows of this split of the evaluation sets are looked for; all if empty."""


def together(samples: Iterable[Sample]) -> Iterator[list[Sample]]:
    """Yield samples in runs that are searched at once, of bounded length."""
    some: list[Sample] = []
    size = 0
    for sample in samples:
        some.append(sample)
        size += len(sample.text)
        if size >= BATCH:
            yield some
            some, size = [], 0
    if some:
        yield some


@stage("data.decontaminate")
def decontaminate(
    ctx: Context,
    cfg: DecontaminateConfig,
    *,
    source: DatasetVersion,
    against: DatasetVersion,
    second: DatasetVersion | None = None,
    third: DatasetVersion | None = None,
) -> DatasetVersion:
    """Keep rows back that hold items of the evaluation sets `against`, `second` and `third`, in whole or in part."""
    index = Index(cfg.ngram, cfg.min_ngram)
    sets = {"against": against, "second": second, "third": third}
    for name, version in sets.items():
        for item in ctx.store.open_dataset(version).samples(cfg.against_split or None) if version else ():
            index.add(f"{name}/{item.id}", item.text)
    index.close()
    opened = ctx.store.open_dataset(source)
    step = max(1, source.rows // COUNTED)
    counted = ctx.progress("Weigh n-grams", -(-source.rows // step))
    for some in together(counted.over(islice(opened.samples(), 0, None, step))):
        index.learn([sample.text for sample in some])
    items: Counter[str] = Counter()
    with ctx.store.new_dataset(source.shape, license=source.license) as out:
        for some in together(ctx.progress("Decontaminate", source.rows).over(opened.samples())):
            checked = [sample.text if cfg.split in ("", sample.split) else "" for sample in some]
            for sample, found in zip(some, index.search(checked, cfg.threshold), strict=True):
                if found is None:
                    out.add(sample)
                    continue
                items[found.item] += 1
                out.reject(
                    sample, "contaminated", f"{found.item}, overlap {found.overlap:.3f}, from word {found.first}"
                )
        facts = {"passages": len(index), "too_short_to_check": index.too_short, "items_found": len(items)}
        return out.commit(profile={"decontamination": facts})
