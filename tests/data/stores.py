"""Small datasets for the tests of the data stages, and one way to call a stage as a recipe would."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from catena.core.config import parse
from catena.core.sample import Sample, sample_id
from catena.core.stage import Context, stage_of
from catena.core.types import DatasetVersion, Shape
from catena.flow.table import STAGES
from catena.hub.store import Store


def put(store: Store, samples: Iterable[Sample], shape: Shape = "document") -> DatasetVersion:
    with store.new_dataset(shape, license="CC0-1.0") as out:
        for sample in samples:
            out.add(sample)
        return out.commit()


def document(text: str, key: Any = "", **fields: Any) -> Sample:
    return Sample(sample_id(text, key), {"text": text}, **fields)


def documents(store: Store, *texts: str) -> DatasetVersion:
    return put(store, [document(text, place) for place, text in enumerate(texts)])


def run(context: Context, name: str, values: dict[str, Any], **inputs: DatasetVersion) -> DatasetVersion:
    stage = stage_of(STAGES.load(name))
    made = stage.function(context, parse(stage.config, values), **inputs)
    assert isinstance(made, DatasetVersion)
    return made


def samples(store: Store, version: DatasetVersion, split: str | None = None) -> list[Sample]:
    return list(store.open_dataset(version).samples(split))


def rejects(store: Store, version: DatasetVersion) -> list[tuple[Sample, str, str]]:
    return list(store.open_dataset(version).rejects())
