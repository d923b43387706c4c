"""Three stages: one makes documents out of nothing, one changes them, one pretends to train."""

from __future__ import annotations

import math
import time

from pydantic import Field

from catena.core.config import Config
from catena.core.errors import DataError
from catena.core.sample import Sample, sample_id
from catena.core.stage import Context, stage
from catena.core.types import DatasetVersion


class NumbersConfig(Config):
    rows: int = Field(10, ge=0, le=100_000)
    """How many documents to make."""
    word: str = "number"
    """What each begins with."""


@stage("example.numbers", volatile=True)
def numbers(ctx: Context, cfg: NumbersConfig) -> DatasetVersion:
    """Make documents "number 0", "number 1", ..."""
    with ctx.store.new_dataset("document", license="CC0-1.0") as out:
        for number in ctx.progress("Numbers", cfg.rows).over(range(cfg.rows)):
            text = f"{cfg.word} {number}"
            out.add(Sample(sample_id(text), {"text": text}, source=f"example:{number}", license="CC0-1.0"))
        ctx.events.metric("rows", cfg.rows)
        return out.commit()


class ShoutConfig(Config):
    mark: str = "!"
    """Put at the end of each text."""
    seconds: float = Field(0.0, ge=0)
    """How long to pretend to work."""
    fail: bool = False
    """Fail instead of working."""


@stage("example.shout")
def shout(ctx: Context, cfg: ShoutConfig, *, source: DatasetVersion) -> DatasetVersion:
    """Turn every text into capitals."""
    begun = ctx.workdir / "begun"
    ctx.events.metric("went_on", float(begun.exists()))
    begun.touch()
    if cfg.fail:
        raise DataError("told to fail", hint="Set fail to false.")
    time.sleep(cfg.seconds)
    with ctx.store.new_dataset("document", license=source.license) as out:
        for sample in ctx.store.open_dataset(source).samples():
            out.add(sample.derive({"text": str(sample.data["text"]).upper() + cfg.mark}))
        return out.commit()


class DescendConfig(Config):
    rate: float = Field(0.1, gt=0)
    """Best at 0.01."""
    width: int = Field(4, ge=1)
    """Best at 12; also how many rows come out."""
    mark: str = "!"
    """Worse by 1 for "?"."""
    seconds: float = Field(0.0, ge=0)
    """How long to pretend to train."""


@stage("example.descend")
def descend(ctx: Context, cfg: DescendConfig, *, source: DatasetVersion) -> DatasetVersion:
    """Pretend to train: a curve `val_loss` over ten steps, and as many rows as it is wide."""
    if cfg.rate > 0.5:
        raise DataError("the training diverged")
    end = 2 + math.log10(cfg.rate / 0.01) ** 2 + ((cfg.width - 12) / 8) ** 2 + (cfg.mark == "?")
    progress = ctx.progress("descend", 10, "steps")
    for step in range(1, 11):
        time.sleep(cfg.seconds / 10)
        ctx.events.metric("val_loss", end + 2 * math.exp(-step), step)
        progress.advance(1)
    progress.finish()
    ctx.events.metric("rows", cfg.width)
    with ctx.store.new_dataset("document", license=source.license) as out:
        for number in range(cfg.width):
            text = f"{number} {cfg.rate} {cfg.mark}"
            out.add(Sample(sample_id(text), {"text": text}, source=f"example:{number}"))
        return out.commit()
