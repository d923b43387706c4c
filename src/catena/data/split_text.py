"""`data.split_text`: one long text into consecutive parts, one for each split; `data.split` deals whole rows.

A book, a log or a corpus in one file has no rows to deal; its end is held out, as the published numbers for such texts
have it. Parts touch, so the first words of one follow the last of the other: only a model with a context sees that.
"""

from __future__ import annotations

from dataclasses import replace

from pydantic import Field, field_validator

from catena.core.config import Config
from catena.core.errors import DataError
from catena.core.stage import Context, stage
from catena.core.types import DatasetVersion
from catena.hub.fields import need_shape


class SplitTextConfig(Config):
    """How much of each text goes where."""

    ratios: dict[str, float] = Field(default_factory=lambda: {"train": 0.9, "validation": 0.1})
    """Name of each split and its share of the characters, in their order in the text; the shares add up to 1."""

    @field_validator("ratios")
    @classmethod
    def _adds_up(cls, ratios: dict[str, float]) -> dict[str, float]:
        if not ratios or any(share <= 0 for share in ratios.values()):
            raise ValueError("every split needs a share of more than 0")
        if abs(sum(ratios.values()) - 1) > 1e-6:
            raise ValueError(f"the shares add up to {sum(ratios.values()):g} instead of 1")
        return ratios


def cut(text: str, ratios: dict[str, float]) -> dict[str, str]:
    """Return the part of each split; joined they are the text."""
    parts, start, share = {}, 0, 0.0
    for number, (name, ratio) in enumerate(ratios.items(), 1):
        share += ratio
        end = len(text) if number == len(ratios) else int(share * len(text))
        parts[name] = text[start:end]
        start = end
    return parts


@stage("data.split_text")
def split_text(ctx: Context, cfg: SplitTextConfig, *, source: DatasetVersion) -> DatasetVersion:
    """Cut each document into consecutive parts for train and validation, by position; nothing is shuffled."""
    need_shape(source, "document")
    if not source.rows:
        raise DataError(
            "there is nothing to split: the dataset is empty", hint="`catena show` lists what was rejected."
        )
    progress = ctx.progress("Split", source.rows, "documents")
    with ctx.store.new_dataset("document", license=source.license) as out:
        for sample in progress.over(ctx.store.open_dataset(source).samples()):
            for name, text in cut(sample.text, cfg.ratios).items():
                if not text:
                    raise DataError(
                        f"the document {sample.id} is too short to be cut into {len(cfg.ratios)} parts",
                        hint="Use data.split, which deals whole documents.",
                    )
                out.add(replace(sample.derive({"text": text}, key=name), split=name))
        return out.commit()
