"""Labelling: what people say of samples, kept until it is committed as a new version.

<workspace>/console/labels/<dataset>-<person>.jsonl    each a line: id, what stood there, the label (null: taken back)

Each person has a file of their own, one write a line: nobody's labels are lost when two label at once, or when the
console or the browser goes. Committing is `hub.corrections`: rows that somebody else has labelled meanwhile are told.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pyarrow.compute as compute

from catena.console.read import datasets
from catena.core.types import DatasetVersion
from catena.hub.corrections import Corrected, Correction, correct
from catena.hub.store import Store
from catena.workspace import Workspace

MOST_CHOICES = 40
MOST_LABEL = 200
"""Characters of a label; what is longer is a text and no label."""
SAMPLED = 20_000
"""Rows whose labels are looked at to offer choices."""


@dataclass(frozen=True)
class Label:
    """What a person said of a sample."""

    id: str
    seen: str | None
    value: str


def field_of(artifact: DatasetVersion) -> str:
    """Return where a label stands: the output of examples, `metadata.label` of everything else."""
    return "output" if artifact.shape == "example" else "metadata.label"


def label_of(row: Mapping[str, Any]) -> str | None:
    """Return the label that a row has."""
    found = row["output"] if row.get("output") is not None else datasets.metadata_of(row).get("label")
    return None if found is None else str(found)


def choices(workspace: Workspace, ref: str) -> list[str]:
    """Return the labels that there are, the commonest first; none where they are texts and not labels."""
    artifact = workspace.store.resolve(ref, DatasetVersion)
    if not artifact.rows:
        return []
    column = "output" if artifact.shape == "example" else "metadata"
    table = datasets.dataset_of(workspace.store, artifact).open_table().to_table(columns=[column], limit=SAMPLED)
    if column == "output":
        counts = Counter({one["values"]: one["counts"] for one in compute.value_counts(table[column]).to_pylist()})
    else:
        told = (orjson.loads(one or "{}") for one in table[column].to_pylist())
        counts = Counter(str(one["label"]) for one in told if isinstance(one, dict) and one.get("label") is not None)
    known = [one for one, _ in counts.most_common(MOST_CHOICES + 1) if one and len(one) <= MOST_LABEL]
    return known if len(counts) <= MOST_CHOICES else []


def kept(store: Store, name: str, person: str) -> dict[str, Label]:
    """Return what a person has said and not committed yet, by sample."""
    found: dict[str, Label] = {}
    try:
        lines = _file(store, name, person).read_bytes().splitlines()
    except FileNotFoundError:
        return {}
    for line in lines:
        try:
            told = json.loads(line)
            id, value = str(told["id"]), told["value"]
        except (ValueError, KeyError, TypeError):
            continue  # a line that a kill cut short
        found.pop(id, None)
        if value is not None:
            found[id] = Label(id, told.get("seen"), str(value))
    return found


def keep(store: Store, name: str, person: str, label: Label | None, id: str) -> None:
    """Write down what a person says of a sample; None takes it back."""
    file = _file(store, name, person)
    with store.lock(f"label-{file.stem}"):
        _write(file, label, id)


def _write(file: Path, label: Label | None, id: str) -> None:
    told = {"id": id, "seen": label.seen if label else None, "value": label.value if label else None}
    line = json.dumps(told, ensure_ascii=False).encode() + b"\n"
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with file.open("a+b") as stream:
        if stream.seek(0, os.SEEK_END):
            stream.seek(-1, os.SEEK_END)
            if stream.read(1) != b"\n":  # a kill cut the last line short: this one does not go on with it
                line = b"\n" + line
        stream.write(line)


def commit(workspace: Workspace, name: str, person: str, message: str) -> Corrected:
    """Make a new version of what a person has said. What is in conflict stays with the person, to be looked at."""
    store = workspace.store
    with store.lock(f"labels-{_file(store, name, person).stem}"):
        mine = kept(store, name, person)
        field = field_of(store.resolve(name, DatasetVersion))
        wanted = [Correction(one.id, field, one.seen, one.value) for one in mine.values()]
        done = correct(store, name, wanted, message=message, author=person)
        conflicts, file = {one.id: stands for one, stands in done.conflicts}, _file(store, name, person)
        with store.lock(f"label-{file.stem}"):
            said = kept(store, name, person)  # maybe more by now, or something else, than what was committed
            for id, label in mine.items():
                stands = conflicts.get(id, label.value)
                if id not in conflicts and said.get(id) == label:
                    _write(file, None, id)
                elif id in said and stands is not None:
                    # What stands there now is what the person sees next; their own word is still there beside it.
                    _write(file, Label(id, str(stands), said[id].value), id)
    return done


def conflicts_of(done: Corrected) -> Sequence[tuple[str, str, str]]:
    """Return what was in conflict: sample, what the person said, what stands there."""
    return [(one.id, str(one.value), "" if stands is None else str(stands)) for one, stands in done.conflicts]


def _file(store: Store, name: str, person: str) -> Path:
    held = hashlib.sha256(f"{name}\n{person}".encode()).hexdigest()[:24]
    return store.root / "console" / "labels" / f"{held}.jsonl"
