"""Prompts: a row and some solved examples become one text, or the turns of a conversation."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from catena.core.errors import DataError
from catena.core.generate import Message
from catena.evaluate.ask import Prompt
from catena.evaluate.rows import Row
from catena.evaluate.task import ChoiceTask, GenerateTask, Prompted
from catena.evaluate.template import Template


@dataclass(frozen=True)
class Choices:
    """The choices of one row, and which of them is right."""

    texts: tuple[str, ...]
    correct: int


class Prompter:
    """Makes the prompts of one task."""

    def __init__(self, task: Prompted, pool: Sequence[Row], *, own: bool, chat: bool) -> None:
        """`pool` are the rows of examples; `own` says that they are the task's own, so a question is no example."""
        self.task, self.pool, self.own, self.chat = task, pool, own, chat
        self.prompt = Template(task.prompt)
        self.answer = Template(task.answer) if isinstance(task, GenerateTask) else None
        self.choices = ChoiceReader(task) if isinstance(task, ChoiceTask) else None
        shots = task.few_shot
        self.count = shots.count if shots is not None else 0
        self.match = Template(shots.match) if shots is not None and shots.match else None
        self._drawn: dict[str, list[Row]] = {}
        """Rows of examples by what they are matched by, in the order in which they are taken."""
        for row in pool if shots is not None else ():
            self._drawn.setdefault(self._matched(row), []).append(row)
        for name, rows in self._drawn.items():
            if shots is not None and shots.pick == "random":
                random.Random(f"examples:{shots.seed}:{name}").shuffle(rows)

    def _matched(self, row: Row) -> str:
        return self.match.text_of(row.values, row.where) if self.match is not None else ""

    def examples(self, row: Row) -> list[Row]:
        """Return the examples that stand before a row; raises `DataError` where there are too few."""
        shots = self.task.few_shot
        if shots is None:
            return []
        name = self._matched(row)
        # One more than is wanted, so that a question that is among them can be left out.
        rows = self._drawn.get(name, [])
        rows = rows if shots.pick == "each" else rows[: self.count + 1]
        others = [one for one in rows if not (self.own and one.id == row.id)]
        if len(others) < self.count:
            for_ = f" for {name!r}" if name else ""
            raise DataError(f"{self.task.name} wants {self.count} examples{for_}, and there are {len(others)}")
        if shots.pick == "each":
            return random.Random(f"examples:{shots.seed}:{row.id}").sample(others, self.count)
        return others[: self.count]

    def __call__(self, row: Row) -> Prompt:
        """Return the prompt of a row."""
        asked = self.prompt.text_of(row.values, row.where)
        solved = [(self.prompt.text_of(one.values, one.where), self.solution(one)) for one in self.examples(row)]
        if self.chat:
            turns = [Message("system", self.task.preamble)] if self.task.preamble else []
            for question, answer in solved:
                turns += [Message("user", question), Message("assistant", answer)]
            return (*turns, Message("user", asked))
        between = self.task.few_shot.between if self.task.few_shot is not None else ""
        shown = "".join(question + self.task.delimiter + answer + between for question, answer in solved)
        return self.task.preamble + shown + asked

    def solution(self, row: Row) -> str:
        """Return what an example shows as its answer."""
        if self.choices is not None:
            found = self.choices(row)
            return found.texts[found.correct]
        return self.references(row)[0]

    def references(self, row: Row) -> tuple[str, ...]:
        """Return the right answers of a row."""
        assert self.answer is not None
        value = self.answer.value_of(row.values, row.where)
        found = tuple(str(one) for one in value) if isinstance(value, list | tuple) else (str(value),)
        if not found:
            raise DataError(f"{row.where}: the list of right answers is empty")
        return found


class ChoiceReader:
    """Reads the choices of a row."""

    def __init__(self, task: ChoiceTask) -> None:
        self.whole = Template(task.choices) if isinstance(task.choices, str) else None
        self.each = [] if isinstance(task.choices, str) else [Template(text) for text in task.choices]
        self.correct = Template(task.correct)

    def __call__(self, row: Row) -> Choices:
        """Return the choices; raises `DataError` where there are fewer than two, or none of them is right."""
        value: Any = self.whole.value_of(row.values, row.where) if self.whole is not None else self._rendered(row)
        if not isinstance(value, list | tuple) or len(value) < 2:
            raise DataError(f"{row.where}: the choices are a list of at least two, not {value!r}")
        texts = tuple(str(one) for one in value)
        return Choices(texts, self._place(row, texts))

    def _rendered(self, row: Row) -> list[str]:
        return [template.text_of(row.values, row.where) for template in self.each]

    def _place(self, row: Row, texts: Sequence[str]) -> int:
        value = self.correct.value_of(row.values, row.where)
        said = str(value).strip()
        place = None
        if isinstance(value, int) and not isinstance(value, bool):
            place = value
        elif said in texts:
            place = list(texts).index(said)
        elif said.isdecimal():
            place = int(said)
        elif len(said) == 1 and said.isalpha() and said.isascii():
            place = ord(said.upper()) - ord("A")
        if place is None or not 0 <= place < len(texts):
            raise DataError(
                f"{row.where}: {said!r} is none of the {len(texts)} choices",
                hint="`correct` gives the number of the right choice (from 0), its letter, or its text.",
            )
        return place
