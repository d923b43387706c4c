"""Facts about fields: what a sample must hold comes in whole, and what it cannot hold is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from catena.core.errors import DataError
from catena.core.sample import Sample
from catena.core.types import Shape
from catena.hub import versions
from catena.hub.fields import FIELDS
from catena.hub.rows import COLUMNS
from catena.hub.store import Store

TURN = {"role": "user", "content": "hi"}


def test_fields_are_the_columns_of_the_tables() -> None:
    assert {shape: list(fields) for shape, fields in FIELDS.items()} == {
        shape: [name for name, _ in columns] for shape, columns in COLUMNS.items()
    }


@pytest.mark.parametrize(
    ("shape", "data", "said", "hint"),
    [
        ("conversation", {"mesages": [TURN]}, "s1 has an unknown field 'mesages'", "Did you mean 'messages'?"),
        ("conversation", {"messages": [TURN], "weight": 1}, "an unknown field 'weight'", "has: messages. Anything"),
        ("conversation", {"messages": [{**TURN, "weight": 1}]}, "message 1 of .* field 'weight'", "role, content"),
        ("conversation", {"messages": [TURN, {"role": "user"}]}, "message 2 of .* no field 'content'", "A message has"),
        ("conversation", {"messages": [{"role": "user", "content": None}]}, "'content' of message 1 .* is nothing", ""),
        ("conversation", {"messages": [TURN, "hi"]}, "message 2 of the sample s1 is text, not role", ""),
        ("conversation", {"messages": None}, "'messages' of the sample s1 is nothing, not a list", ""),
        ("document", {"txt": "a"}, "an unknown field 'txt'", "Did you mean 'text'?"),
        ("document", {}, "has no field 'text'", "A document has: text."),
        ("document", {"text": 5}, "'text' of the sample s1 is of the type int, not text", ""),
        ("example", {"input": "a"}, "has no field 'output'", "An example has: input, output."),
        ("media", {"content": "a", "media_type": "text/plain"}, "'content' of .* is text, not bytes", ""),
    ],
)
def test_a_sample_with_wrong_fields_is_refused(
    store: Store, shape: Shape, data: dict[str, Any], said: str, hint: str
) -> None:
    with store.new_dataset(shape) as writer:
        with pytest.raises(DataError, match=said) as caught:
            writer.add(Sample(id="s1", data=data))
        writer.reject(Sample(id="s1", data={}), "bad_row")  # what is kept back may hold anything
        assert writer.commit().rows == 0
    assert hint in caught.value.hint


def test_metadata_may_hold_anything(store: Store) -> None:
    rows: list[dict[str, Any]] = [
        {"_id": "a", "_source": "page", "_license": "MIT", "_parents": ["p"], "_split": "test", "text": "a"},
        {"text": "b", "metadata": {"lang": "en", "quality": 0.9, "fields": {"author": None}}},
    ]
    dataset = versions.put_rows(store, rows, split="train")
    kept = list(store.open_dataset(store.resolve(dataset.digest, type(dataset))).samples())
    assert [(sample.split, sample.license) for sample in kept] == [("test", "MIT"), ("train", None)]
    assert kept[1].metadata == {"lang": "en", "quality": 0.9, "fields": {"author": None}}


@pytest.mark.parametrize(
    ("line", "said", "hint"),
    [
        ('{"mesages": []}', r"the columns \(mesages\) are of no shape", "Did you mean 'messages'? Shapes and"),
        ('{"text": "a", "lang": "en"}', "row 1 of .*: there is no column 'lang'", "belongs into `metadata`"),
        ('{"messages": [{"role": "user", "contnt": "a"}]}', "message 1 of it .* 'contnt'", "Did you mean 'content'?"),
    ],
)
def test_a_file_with_wrong_columns_begins_no_name(
    store: Store, tmp_path: Path, line: str, said: str, hint: str
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(DataError, match=said) as caught:
        versions.commit_file(store, "rows", path)
    assert hint in caught.value.hint
    assert not store.index.versions(name="rows")
