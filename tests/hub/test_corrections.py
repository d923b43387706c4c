"""Corrections of rows that share an id: the row that its author saw is the one that changes."""

from __future__ import annotations

from catena.core.sample import Sample
from catena.core.types import DatasetVersion
from catena.hub.corrections import Corrected, Correction, correct
from catena.hub.store import Store


def standing(store: Store) -> list[tuple[str, str]]:
    """Return (id, output) of each row of `pairs`, sorted: a changed row moves to the end."""
    dataset = store.open_dataset(store.resolve("pairs", DatasetVersion))
    return sorted((sample.id, str(sample.data["output"])) for sample in dataset.samples())


def corrected(store: Store, id: str, seen: str, value: str) -> Corrected:
    return correct(store, "pairs", [Correction(id, "output", seen, value)])


def test_of_two_rows_of_one_id_the_one_that_was_seen_is_corrected(store: Store) -> None:
    with store.new_dataset("example") as writer:
        for id, output in (("twice", "wrong"), ("once", "fine"), ("twice", "wrong"), ("twice", "right")):
            writer.add(Sample(id, {"input": "question", "output": output}))
        made = writer.commit()
    store.index.add_artifact(made)
    store.index.add_name("pairs", made.digest)

    first = corrected(store, "twice", "wrong", "better")
    assert (first.changed, first.conflicts) == (1, ())
    assert standing(store) == [("once", "fine"), ("twice", "better"), ("twice", "right"), ("twice", "wrong")]

    nothing = corrected(store, "twice", "gone", "right")  # one of them says so already
    assert (nothing.commit, nothing.conflicts) == (None, ())

    late = Correction("twice", "output", "gone", "new")
    refused = correct(store, "pairs", [Correction("once", "output", "fine", "good"), late])
    assert (refused.changed, [one for one, _ in refused.conflicts]) == (1, [late])
    assert standing(store) == [("once", "good"), ("twice", "better"), ("twice", "right"), ("twice", "wrong")]
    missing = Correction("none", "output", "x", "y")
    assert correct(store, "pairs", [missing]).conflicts == ((missing, None),)
