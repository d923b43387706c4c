"""Judges: another model says how good an answer is, or which of two is better.

A pair is shown twice, with the places swapped: a judge that likes what stands first says nothing so. What it writes is
read by its last mark; a ruling that has none counts as a tie, or the worst grade, and is counted.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from catena.core.generate import Message, SamplingParams
from catena.evaluate.ask import Asker
from catena.evaluate.task import JudgeTask

VERDICT = re.compile(r"\[\[\s*([ABC])\s*\]\]")
GRADE = re.compile(r"\[\[\s*(\d+(?:\.\d+)?)\s*\]\]")
PAIR = """\
You compare two answers to the same question. Look at {criteria}. Their order, their length and their names do not \
matter. Say in a sentence or two what differs, then end with [[A]] if answer A is better, [[B]] if answer B is better, \
[[C]] if they are equally good.

[Question]
{question}

[Answer A]
{first}

[Answer B]
{second}
"""
SINGLE = """\
You grade an answer to a question. Look at {criteria}. Say in a sentence or two why, then end with a whole number from \
1 (bad) to {top} (excellent) in double brackets, for example [[{example}]].

[Question]
{question}
{reference}
[Answer]
{answer}
"""
Asked = Sequence[tuple[str, str, str]]
"""Question, answer, and the other answer or a reference."""


class Ruling(NamedTuple):
    """What a judge came to."""

    score: float
    """Between 0 and 1."""
    said: str
    unread: int
    """Replies without a mark."""


def choose_between(judge: Asker, task: JudgeTask, asked: Asked) -> list[Ruling]:
    """Return 1 where the answer wins from both places, 0 where it loses from both, else in between."""
    texts = [
        PAIR.format(criteria=task.criteria, question=question, first=first, second=second)
        for question, answer, other in asked
        for first, second in ((answer, other), (other, answer))
    ]
    said = _rulings(judge, task, texts)
    found = []
    for at in range(0, len(said), 2):
        marks = [_last(VERDICT, text) for text in said[at : at + 2]]
        ahead = {"A": 1.0, "B": 0.0}
        first = ahead.get(marks[0] or "", 0.5)
        second = 1 - ahead.get(marks[1] or "", 0.5)
        found.append(Ruling((first + second) / 2, "\n--- swapped ---\n".join(said[at : at + 2]), marks.count(None)))
    return found


def grade(judge: Asker, task: JudgeTask, asked: Asked) -> list[Ruling]:
    """Return grades, put between 0 and 1."""
    texts = [
        SINGLE.format(
            criteria=task.criteria,
            top=task.top,
            example=max(task.top - 2, 1),
            question=question,
            reference=f"\n[A good answer]\n{reference}\n" if reference else "",
            answer=answer,
        )
        for question, answer, reference in asked
    ]
    found = []
    for said in _rulings(judge, task, texts):
        mark = _last(GRADE, said)
        value = min(max(float(mark), 1.0), float(task.top)) if mark is not None else 1.0
        found.append(Ruling((value - 1) / (task.top - 1), said, int(mark is None)))
    return found


def _rulings(judge: Asker, task: JudgeTask, texts: Sequence[str]) -> list[str]:
    params, label = SamplingParams(max_tokens=task.judge_tokens), f"{task.name}: judge"
    return [one.text for one in judge.write([((Message("user", text),), params) for text in texts], label)]


def _last(pattern: re.Pattern[str], text: str) -> str | None:
    found = pattern.findall(text)
    return found[-1] if found else None
