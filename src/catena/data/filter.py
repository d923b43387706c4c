"""`data.filter`: documents that are worth keeping go on; each of the others is kept back with its reason."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, cast

from pydantic import BeforeValidator, Field, SerializeAsAny

from catena.core.config import Config
from catena.core.sample import Sample
from catena.core.stage import Context, stage
from catena.core.types import DatasetVersion
from catena.data.filters.table import Filter, parse_filters
from catena.data.shards import Outcome, map_rows, write_rows


def first_reason(filters: Mapping[str, Filter], sample: Sample) -> tuple[str, str] | None:
    """Return (name of the filter, reason) of the first filter that keeps the sample back, or None."""
    for name, rule in filters.items():
        if (reason := rule.reason(sample)) is not None:
            return name, reason
    return None


class FilterConfig(Config):
    filters: Annotated[dict[str, SerializeAsAny[Config]], BeforeValidator(parse_filters)] = Field(
        default_factory=lambda: parse_filters({"length": {}, "repetition": {}}), min_length=1
    )
    """Filter name to its fields; applied in the order of their names, the first reason counts."""

    max_characters: int = Field(20_000_000, ge=1)
    """Longer documents are kept back as `too_large` before any filter counts their words: that would take gigabytes."""

    def modules(self) -> tuple[str, ...]:
        """Return where the rules live: a plugin's too."""
        return tuple(type(rule).__module__ for rule in self.filters.values())


def filter_row(cfg: FilterConfig) -> Callable[[Sample], Outcome]:
    """Return the function that judges one row."""
    filters = cast("dict[str, Filter]", cfg.filters)  # `parse_filters` has seen to it

    def judged(sample: Sample) -> Outcome:
        if len(sample.text) > cfg.max_characters:
            return Outcome(sample, "too_large", f"{len(sample.text)} characters")
        found = first_reason(filters, sample)
        return Outcome(sample) if found is None else Outcome(sample, found[1], f"filter {found[0]}")

    return judged


@stage("data.filter")
def filter_documents(ctx: Context, cfg: FilterConfig, *, source: DatasetVersion) -> DatasetVersion:
    """Keep back documents that are too short, repetitive or of low quality, each with its reason."""
    with ctx.store.new_dataset(source.shape, license=source.license) as out:
        write_rows(out, map_rows(ctx, source, "catena.data.filter:filter_row", cfg, label="Filter", unit="documents"))
        return out.commit()
