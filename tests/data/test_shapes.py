"""A stage that is given a dataset of a shape that it is not for says so, and never breaks."""

from __future__ import annotations

import contextlib
import typing
from dataclasses import replace

import pytest

from catena.core.errors import CatenaError, UsageError
from catena.core.sample import Sample
from catena.core.stage import Context, stage_of
from catena.core.types import DatasetVersion, Shape
from catena.flow.table import STAGES
from catena.hub.fields import need_shape
from catena.hub.store import Store

ROWS: dict[Shape, dict[str, typing.Any]] = {
    "document": {"text": "The quick brown fox jumps over the lazy dog."},
    "conversation": {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]},
    "example": {"input": "the letter alpha", "output": "greek"},
    "media": {"content": b"<p>The quick brown fox jumps over the lazy dog.</p>", "media_type": "text/html"},
}


def takes_one_source(name: str) -> bool:
    found = stage_of(STAGES.load(name))
    return name.startswith("data.") and set(found.inputs) - found.optional == {"source"}


@pytest.fixture
def datasets(store: Store) -> dict[Shape, DatasetVersion]:
    made: dict[Shape, DatasetVersion] = {}
    for shape, data in ROWS.items():
        with store.new_dataset(shape) as writer:
            for number in range(4):
                writer.add(Sample(id=f"s{number}", data=data))
            made[shape] = writer.commit()
    return made


@pytest.mark.parametrize("name", [name for name in STAGES.names() if takes_one_source(name)])
@pytest.mark.parametrize("shape", ROWS)
def test_no_stage_breaks_on_a_dataset_of_another_shape(
    name: str, shape: Shape, context: Context, datasets: dict[Shape, DatasetVersion]
) -> None:
    found = stage_of(STAGES.load(name))
    config = found.config()
    with contextlib.suppress(CatenaError):
        assert isinstance(found.function(replace(context, workers=1), config, source=datasets[shape]), DatasetVersion)


def test_what_is_wanted_and_where_it_comes_from_is_said(datasets: dict[Shape, DatasetVersion]) -> None:
    need_shape(datasets["example"], "document", "example")
    with pytest.raises(
        UsageError, match=r"corpus has to be a dataset of documents; .* is of the shape 'media'"
    ) as caught:
        need_shape(datasets["media"], "document", what="corpus")
    assert "data.extract" in caught.value.hint
