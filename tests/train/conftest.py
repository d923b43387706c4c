"""Fixtures of the training tests: small datasets in a store, and contexts that keep their events."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from catena.core.events import Events
from catena.core.sample import Sample
from catena.core.stage import Context
from catena.core.types import DatasetVersion
from catena.hub.store import Store

WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta"]


def document(number: int) -> str:
    names = [WORDS[(number * step + step) % len(WORDS)] for step in range(1, 30)]
    return f"Page {number}. " + " ".join(names) + ". 你好，世界。\n"


def conversation(number: int, level: int) -> list[dict[str, str]]:
    name = WORDS[number % len(WORDS)]
    question = f"what is {name}?" if level == 0 else f"please, explain {name} in short, number {number}."
    return [{"role": "user", "content": question}, {"role": "assistant", "content": f"{name} is letter {number % 8}."}]


@pytest.fixture
def documents(store: Store) -> DatasetVersion:
    """40 documents to train on and 10 to measure on."""
    with store.new_dataset("document") as writer:
        for number in range(50):
            split = "train" if number < 40 else "validation"
            writer.add(Sample(id=f"d{number}", data={"text": document(number)}, split=split))
        return writer.commit()


@pytest.fixture
def conversations(store: Store) -> DatasetVersion:
    """24 conversations of level 0 and 40 of level 1."""
    with store.new_dataset("conversation") as writer:
        for level, count in ((0, 24), (1, 40)):
            for number in range(count):
                metadata = {"level": level, "name": WORDS[number % 8]}
                data = {"messages": conversation(number, level)}
                writer.add(Sample(id=f"c{level}-{number}", data=data, metadata=metadata, split="train"))
        return writer.commit()


@dataclass
class Recorded:
    """A context, and the events that were emitted through it."""

    context: Context
    events: list[dict[str, Any]]

    def values(self, name: str) -> list[float]:
        return [event["value"] for event in self.events if event["event"] == "metric" and event["name"] == name]

    def said(self) -> str:
        return "\n".join(event["message"] for event in self.events if event["event"] == "log")


@pytest.fixture
def recorded(store: Store, tmp_path: Path) -> Callable[[str], Recorded]:
    """Make a context with a work folder of the given name; the same name finds the same folder."""

    def make(name: str) -> Recorded:
        workdir = tmp_path / "work" / name
        workdir.mkdir(parents=True, exist_ok=True)
        events: list[dict[str, Any]] = []
        return Recorded(Context(store, workdir, 7, Events(listeners=[events.append]), name), events)

    return make
