"""Examples: questions to try a model with. They are drawn from what was kept back of the conversations it learnt from.

The model's own datasets are found by lineage, so that the questions fit whatever it learnt, and every one comes with
the answer that the data has for it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from catena.core.digest import digest_of
from catena.core.errors import UsageError
from catena.core.sample import Sample
from catena.core.types import DatasetVersion, ModelVersion
from catena.hub.attribution import normal, trained_on, turns
from catena.hub.store import Store

READ = 20_000
"""Most samples that are looked at: a few questions do not need a million."""
HAN = re.compile(r"[\u3400-\u9fff]")


@dataclass(frozen=True, slots=True)
class Example:
    """A question that the model was not trained on, and its answer in the data."""

    question: str
    expected: str
    page: str
    """The document that the answer is from: the sample's `page`, or its `_source`."""
    split: str
    phrasing: str
    """The sample's `template`, where it has one: how the question is put."""
    dataset: str
    """Digest of the dataset."""

    def is_answered_by(self, answer: str) -> bool:
        """Tell whether an answer is the expected one, white space aside."""
        return normal(answer) == normal(self.expected)


def held_out(store: Store, model: ModelVersion, count: int) -> list[Example]:
    """Return `count` questions (fewer, where there are no more), the same ones each time.

    They are spread over the phrasings and over what is asked about; one is Chinese where one can be. Raises
    `UsageError` for a model that has learnt no conversations, or of whose conversations nothing was kept back.
    """
    groups: dict[str, list[Example]] = {}
    for example in islice(_kept_back(store, model), READ):
        groups.setdefault(example.phrasing or example.split, []).append(example)
    if not groups:
        raise UsageError(
            "this model has no questions to try it with: lineage shows no conversations of which a split was kept back",
            hint="Ask your own: catena chat MODEL 'What does json.dumps do?'",
        )
    drawn: list[Example] = []
    seen: set[Example] = set()
    for number, phrasing in enumerate(_phrasings(groups, count)):
        found = _another(groups[phrasing], seen, number)
        if found is not None:
            drawn.append(found)
            seen.add(found)
    return drawn


def _phrasings(groups: Mapping[str, Sequence[Example]], count: int) -> list[str]:
    """Return the phrasing of each question, spread over all there are; of several the last is Chinese if none was."""
    chinese = [name for name, group in groups.items() if HAN.search(group[0].question)]
    order = _spread(list(groups), count)
    if count > 1 and chinese and not set(order) & set(chinese):
        order = [*_spread([name for name in groups if name not in chinese], count - 1), chinese[0]]
    return order


def _spread(names: Sequence[str], count: int) -> list[str]:
    return [names[number * len(names) // count] for number in range(count)]


def _kept_back(store: Store, model: ModelVersion) -> Iterator[Example]:
    """Yield the exchanges of the splits that were not learnt: those for validation only where there are no others."""
    for digest, learnt in trained_on(store, model.digest).items():
        dataset = store.index.artifact(digest)
        if not isinstance(dataset, DatasetVersion) or dataset.shape != "conversation" or learnt is None:
            continue
        kept = [split for split in dataset.splits if split != learnt]
        for split in [split for split in kept if split != "validation"] or kept:
            for sample in store.open_dataset(dataset).samples(split):
                yield from _example(dataset, sample, split)


def _example(dataset: DatasetVersion, sample: Sample, split: str) -> Iterator[Example]:
    """Yield a sample's first exchange: later ones need what was said before."""
    page = str(sample.metadata.get("page") or sample.source)
    phrasing = str(sample.metadata.get("template") or "")
    for question, answer in islice(turns(sample), 1):
        if question:
            yield Example(question, answer, page, split, phrasing, dataset.digest)


def _another(group: Sequence[Example], seen: set[Example], number: int) -> Example | None:
    """Return one of a group that is not seen yet, about another page than those where there is one."""
    start = int(digest_of([group[0].dataset, number])[:8], 16)
    fresh = [example for step in range(len(group)) if (example := group[(start + step) % len(group)]) not in seen]
    pages = {example.page for example in seen}
    return next((example for example in fresh if example.page not in pages), next(iter(fresh), None))
