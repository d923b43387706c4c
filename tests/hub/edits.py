"""Datasets for the tests of versions: put, edit, and read back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import orjson

from catena.core.sample import Sample, sample_id
from catena.core.types import DatasetVersion
from catena.hub import versions
from catena.hub.index import now
from catena.hub.store import Store

Edit = Callable[[list[dict]], list[dict]]


def put(store: Store, texts: dict[str, str], name: str = "pages", rejected: str = "") -> DatasetVersion:
    with store.new_dataset("document") as writer:
        for key, text in texts.items():
            writer.add(Sample(id=key, data={"text": text}, source="page", metadata={"title": key}))
        if rejected:
            writer.reject(Sample(id="r", data={"text": rejected}), "too_short", "1 word")
        version = writer.commit()
    store.index.add_artifact(version)
    store.index.add_name(name, version.digest)
    return version


def edit(store: Store, tmp_path: Path, ref: str, change: Edit) -> Path:
    """Check a version out, edit its rows, and return the file."""
    folder = tmp_path / sample_id(ref, now().isoformat())
    [path, *_] = versions.checkout(store, ref, folder)
    rows = change([orjson.loads(line) for line in path.read_bytes().splitlines()])
    path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    return path


def retext(key: str, text: str) -> Edit:
    return lambda rows: [{**row, "text": text} if row["_id"] == key else row for row in rows]


def texts(store: Store, ref: str) -> dict[str, str]:
    return {s.id: str(s.data["text"]) for s in store.open_dataset(store.resolve(ref, DatasetVersion)).samples()}


BASE = {f"k{number:02}": f"text number {number}" for number in range(20)}
