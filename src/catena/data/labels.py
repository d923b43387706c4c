"""`data.align_labels`: one name for each label, whoever wrote it: examples `{"input": ..., "output": label}`.

Spelling (case, width, spaces, hyphens, underscores) is evened out, and variants are merged as a mapping says. What only
looks like a variant (one or two letters off, a plural) is told in the profile, and never merged by itself.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from difflib import SequenceMatcher
from itertools import combinations
from typing import Any, NamedTuple

from pydantic import Field, model_validator

from catena.core.config import Config
from catena.core.errors import did_you_mean
from catena.core.sample import Sample
from catena.core.stage import Context, stage
from catena.core.types import DatasetVersion
from catena.data.words import folded

# Not between digits: `step 1-2` is not `step 12`.
SEPARATORS = re.compile(r"(?<!\d)[\s_-]+|[\s_-]+(?!\d)")
EDGES = " \t\"'“”‘’「」【】[]()（）<>#*.,;:!?。，；：！？"
ALIKE = 0.8
MOST_COMPARED = 500
"""Labels that the profile lists and compares with each other; a set with more is not a set of classes."""


def spelling(label: str) -> str:
    """Return what all spellings of a label have in common: without case, width, spaces, hyphens and marks around it."""
    return SEPARATORS.sub("", folded(label).strip(EDGES))


class AlignLabelsConfig(Config):
    field: str = Field("output", min_length=1)
    """Where the label is: a field of the data (`output`), or a path in the metadata (`fields.label`)."""
    labels: dict[str, list[str]] = Field(default_factory=dict)
    """Each label as it should be, and its variants: {refund: [money back, 退款]}; spelling does not matter."""
    closed: bool = False
    """Keep rows back whose label is none of `labels` (`unknown_label`)."""
    merge_spellings: bool = True
    """Labels that differ only in case, width, spaces, hyphens or underscores become the commonest of them."""

    @model_validator(mode="after")
    def _one_label_for_each_variant(self) -> AlignLabelsConfig:
        owner: dict[str, str] = {}
        for label, variants in self.labels.items():
            for variant in (label, *variants):
                other = owner.setdefault(spelling(variant), label)
                if other != label:
                    raise ValueError(f"the variant {variant!r} is of {other!r} and of {label!r}")
        if self.closed and not self.labels:
            raise ValueError("a closed set needs `labels`")
        return self

    def table(self) -> dict[str, str]:
        """Return the label of each known spelling."""
        return {spelling(variant): label for label, variants in self.labels.items() for variant in (label, *variants)}


class Suggestion(NamedTuple):
    """Two labels that may be one."""

    label: str
    like: str
    why: str


def suggestions(labels: Mapping[str, int]) -> list[Suggestion]:
    """Return the pairs of labels that look like variants, the rarer one first. Nothing is merged for it."""
    if len(labels) > MOST_COMPARED:
        return []
    found = []
    for pair in combinations(sorted(labels), 2):
        rarer, other = sorted(pair, key=lambda label: (labels[label], label))
        why = likeness(spelling(rarer), spelling(other))
        if why:
            found.append(Suggestion(rarer, other, why))
    return found


def likeness(first: str, second: str) -> str:
    """Return `plural`, `spelling` or nothing: what makes two labels look like one."""
    short, long = sorted((first, second), key=len)
    if long in (f"{short}s", f"{short}es") or (short.endswith("y") and long == f"{short[:-1]}ies"):
        return "plural"
    if len(short) >= 4 and SequenceMatcher(None, first, second).ratio() >= ALIKE:
        return "spelling"
    return ""


def common_spellings(labels: Iterable[str]) -> dict[str, str]:
    """Return the commonest form of each spelling; of equally common ones, the first in order."""
    forms: dict[str, Counter[str]] = {}
    for label in labels:
        forms.setdefault(spelling(label), Counter())[label.strip()] += 1
    return {key: min(counts, key=lambda label: (-counts[label], label)) for key, counts in forms.items()}


def raw_label(sample: Sample, field: str) -> str:
    """Return the label as it stands, or an empty text."""
    value = sample.value(field)
    return "" if value is None else str(value)


def labelled(sample: Sample, label: str, before: str, field: str) -> Sample:
    """Return the example with its label; a document becomes an example of its own, with the document as parent."""
    metadata = {**sample.metadata, **({"label_before": before} if before != label else {})}
    if field == "output" and "output" in sample.data:
        return replace(sample, data={**sample.data, "output": label}, metadata=metadata)
    return sample.derive({"input": sample.text, "output": label}, key="label", metadata=metadata)


@stage("data.align_labels")
def align_labels(ctx: Context, cfg: AlignLabelsConfig, *, source: DatasetVersion) -> DatasetVersion:
    """Merge the variants of labels and write examples with the label as output; unknown ones are kept back."""
    opened = ctx.store.open_dataset(source)
    known = cfg.table()
    common = common_spellings(label for sample in opened.samples() if (label := raw_label(sample, cfg.field).strip()))
    before: Counter[str] = Counter()
    after: Counter[str] = Counter()
    merged = 0
    with ctx.store.new_dataset("example", license=source.license) as out:
        for sample in ctx.progress("Labels", source.rows).over(opened.samples()):
            raw = raw_label(sample, cfg.field)
            key = spelling(raw)
            before[raw] += 1
            if not key:
                out.reject(sample, "no_label", cfg.field, shape=source.shape)
                continue
            if cfg.closed and key not in known:
                out.reject(sample, "unknown_label", f"{raw!r}. {did_you_mean(raw, cfg.labels)}", shape=source.shape)
                continue
            label = known.get(key) or (common[key] if cfg.merge_spellings else raw.strip())
            merged += label != raw
            after[label] += 1
            out.add(labelled(sample, label, raw, cfg.field))
        profile: dict[str, Any] = {
            "labels_before": dict(sorted(before.most_common(MOST_COMPARED))),
            "labels": dict(sorted(after.most_common(MOST_COMPARED))),
            "suggestions": [found._asdict() for found in suggestions(after)],
        }
        return out.commit(changed={"merged_label": merged} if merged else {}, profile=profile)
