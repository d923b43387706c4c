"""Questions about a named thing, from a file of phrasings: the grammar, the word noise, and what may be claimed. Pure.

fixed templates                 level 0
opening + core + ending         level 1 and up, some with noise: words put in, exchanged, left out
held-out phrasings              never trained on; every word of them is known from training
phrasings with unseen words     never trained on; at least one word is not known from training
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product
from typing import Generic, NamedTuple, TypeVar

from pydantic import Field, field_validator, model_validator

from catena.core.config import Config
from catena.core.errors import DataError
from catena.data.words import CJK_CHARACTER, folded_words

NAME = "{name}"
Item = TypeVar("Item")

# Shares of the written variants that people really use: no mark at the end, no capitals.
NO_MARK, NO_CAPITALS = 0.12, 0.1
CLOSING = ".?!？。！"
LATIN_WORD = re.compile(r"(?<![\w.])[a-z]{2,12}(?![\w.(])")


class Grammar(Config):
    share: float = Field(gt=0, le=1)
    """Which share of the questions is in this language."""
    spaces: bool = True
    """Words, and thus the parts of a question, are separated by spaces."""
    openings: list[str] = Field(min_length=1)
    """What a question may begin with; an empty one for nothing."""
    cores: list[str] = Field(min_length=1)
    """The question itself, with {name}."""
    endings: list[str] = Field(min_length=1)
    """What may follow; an empty one for nothing."""

    def join(self, opening: str, core: str, ending: str) -> str:
        """Put the three parts together as one would write them."""
        if not self.spaces:
            between = "，" if ending and core[-1:] not in CLOSING else ""
            # A name always has a blank or nothing before it, so that it is the same tokens everywhere.
            blank = " " if opening and core.startswith(NAME) else ""
            return f"{opening}{blank}{core}{between}{ending}"
        if not opening or opening[-1] in CLOSING:
            core = core if core.startswith(NAME) else core[:1].upper() + core[1:]
        return " ".join(part for part in (opening, core, ending) if part)


class Phrasings(Config):
    fixed: list[str] = Field(min_length=1)
    """Templates of level 0, the first ones first."""
    grammar: dict[str, Grammar] = Field(min_length=1)
    """Language to its grammar; the shares add up to 1."""
    held_out: list[str] = Field(default_factory=list)
    """Templates for evaluation whose every word occurs in training."""
    unseen_words: list[str] = Field(default_factory=list)
    """Templates for evaluation with a word that does not."""

    @field_validator("fixed", "held_out", "unseen_words")
    @classmethod
    def _name_once(cls, templates: list[str]) -> list[str]:
        for template in templates:
            if template.count(NAME) != 1:
                raise ValueError(f"{template!r} must have {{name}} in it, once")
        return templates

    @model_validator(mode="after")
    def _sound(self) -> Phrasings:
        for language, grammar in self.grammar.items():
            for core in grammar.cores:
                if core.count(NAME) != 1:
                    raise ValueError(f"grammar.{language}: the core {core!r} must have {{name}} in it, once")
        if abs(sum(grammar.share for grammar in self.grammar.values()) - 1) > 1e-6:
            raise ValueError("the shares of the languages must add up to 1")
        return self


class Noise(Config):
    levels: list[int] = Field(default_factory=lambda: [1])
    """Levels whose questions get noise; never 0."""
    probability: float = Field(default=0.4, ge=0, le=1)
    """Share of questions in which single words are changed."""
    around: float = Field(default=0.15, ge=0, le=1)
    """Share of questions that are nothing but random words around the name."""
    insert: float = Field(default=0.15, ge=0, le=1)
    """In a question with noise, how likely a word is put in before each word."""
    exchange: float = Field(default=0.15, ge=0, le=1)
    """How likely each word is exchanged for another."""
    drop: float = Field(default=0.1, ge=0, le=1)
    """How likely each word is left out."""
    han: float = Field(default=0.06, ge=0, le=1)
    """Share of the random words that are one to three Chinese characters."""


class Question(NamedTuple):
    """A question before the name is put in, and which template it came from."""

    text: str
    template: str

    def about(self, name: str) -> str:
        """Return the question about one thing."""
        return self.text.replace(NAME, name)


class Deck(Generic[Item]):
    """Deals items in random order, all of them once before any comes again: no phrasing is missed by chance."""

    def __init__(self, items: Iterable[Item], rng: random.Random) -> None:
        self._items, self._rng = list(items), rng
        self._left: list[Item] = []

    def deal(self) -> Item:
        """Return the next item."""
        if not self._left:
            self._left = self._rng.sample(self._items, len(self._items))
        return self._left.pop()


class Asker:
    """Makes questions of the grammar, one after another; the same seed makes the same ones."""

    def __init__(self, phrasings: Phrasings, noise: Noise, words: Sequence[str], seed: str) -> None:
        self._phrasings, self._noise, self._words = phrasings, noise, words
        self._rng = random.Random(seed)
        held = (*phrasings.held_out, *phrasings.unseen_words)
        self._held = {plain(template) for template in held}
        self._banned = set(CJK_CHARACTER.findall("".join(held)))
        self._parts = {
            language: tuple(
                Deck(enumerate(parts), self._rng) for parts in (grammar.openings, grammar.cores, grammar.endings)
            )
            for language, grammar in phrasings.grammar.items()
        }
        self._owed = dict.fromkeys(phrasings.grammar, 0.0)

    def ask(self, level: int) -> Question:
        """Return the next question of a level from 1 up; never one that is held out."""
        while True:
            question = self._next(noisy=level in self._noise.levels)
            if plain(question.text) not in self._held:  # leaving out words can make a held-out phrasing of another
                return question

    def _next(self, *, noisy: bool) -> Question:
        chance = self._rng.random()
        if noisy and chance < self._noise.around:
            return Question(self._random_words(), "around")
        clean = self._from_grammar()
        if noisy and self._words and chance < self._noise.around + self._noise.probability:
            return Question(self._with_noise(clean.text), f"{clean.template}+noise")
        return clean

    def _from_grammar(self) -> Question:
        for language, grammar in self._phrasings.grammar.items():
            self._owed[language] += grammar.share
        language = max(self._owed, key=self._owed.__getitem__)
        self._owed[language] -= 1
        (first, opening), (second, core), (third, ending) = (deck.deal() for deck in self._parts[language])
        chance = self._rng.random()
        if chance < NO_MARK:
            core = core.rstrip(CLOSING + " ")
        text = self._phrasings.grammar[language].join(opening, core, ending)
        if chance > 1 - NO_CAPITALS:
            text = text.lower()
        return Question(text, f"{language}/{first}/{second}/{third}")

    def _with_noise(self, text: str) -> str:
        noise, rng = self._noise, self._rng
        result = []
        for word in text.split(" "):
            if rng.random() < noise.insert:
                result.append(self._word())
            chance = rng.random()
            if NAME in word or chance >= noise.exchange + noise.drop:
                result.append(word)
            elif chance < noise.exchange:
                result.append(self._word() + (word[-1] if word[-1:] in ".,?!:" else ""))
        if rng.random() < noise.insert:
            result.append(self._word())
        return " ".join(result)

    def _random_words(self) -> str:
        before = [self._word() for _ in range(self._rng.randint(0, 5))]
        after = [self._word() for _ in range(self._rng.choice((0, 0, 1, 2, 3, 4)))]
        return " ".join((*before, NAME + self._rng.choice(("", "", "?", ".", ",", ";", ":")), *after))

    def _word(self) -> str:
        if not self._words or self._rng.random() < self._noise.han:
            while True:
                text = "".join(chr(self._rng.randrange(0x4E00, 0x9FA6)) for _ in range(self._rng.randint(1, 3)))
                if self._banned.isdisjoint(text):
                    return text
        word, chance = self._rng.choice(self._words), self._rng.random()
        return word.capitalize() if chance < 0.25 else word + self._rng.choice(",:;?.!") if chance < 0.4 else word


def plain(text: str) -> str:
    """Return what makes two questions the same one: letters and digits, without case."""
    return "".join(folded_words(text))


def vocabulary(text: str) -> set[str]:
    """Return the words of a question or template; names fall into their parts."""
    return set(folded_words(text.replace(NAME, " ").replace("_", " ")))


def noise_words(texts: Iterable[str], phrasings: Phrasings) -> list[str]:
    """Return the lower-case words of running text, sorted, without those of the phrasings kept for evaluation."""
    words = {word for text in texts for word in LATIN_WORD.findall(text)}
    return sorted(words.difference(*map(vocabulary, (*phrasings.held_out, *phrasings.unseen_words))))


def every_template(phrasings: Phrasings) -> Iterator[str]:
    """Yield every template that training can come upon, without noise."""
    yield from phrasings.fixed
    for grammar in phrasings.grammar.values():
        for opening, core, ending in product(
            dict.fromkeys(grammar.openings), grammar.cores, dict.fromkeys(grammar.endings)
        ):
            yield grammar.join(opening, core, ending)


def check_templates(phrasings: Phrasings) -> None:
    """Raise `DataError` that names a phrasing kept for evaluation which the training templates can produce."""
    kept = {plain(template): template for template in (*phrasings.held_out, *phrasings.unseen_words)}
    for template in every_template(phrasings):
        if plain(template) in kept:
            raise DataError(
                f"the phrasing {kept[plain(template)]!r} is kept for evaluation, and training has it too: {template!r}",
                hint="Take it out of one of the two lists.",
            )


def check_questions(trained: Iterable[str], kept: Mapping[str, Sequence[str]], phrasings: Phrasings) -> None:
    """Raise `DataError` where a question kept for evaluation was trained on, or a claim about words does not hold.

    `trained` are all training questions, `kept` the evaluation questions by phrasing.
    """
    questions = list(trained)
    seen, words = {plain(question) for question in questions}, set[str]().union(*map(vocabulary, questions))
    for template, asked in kept.items():
        leaked = next((question for question in asked if plain(question) in seen), None)
        if leaked is not None:
            raise DataError(
                f"the question {leaked!r} of the phrasing {template!r} is kept for evaluation, and trained on"
            )
    for template in phrasings.held_out:
        new = sorted(vocabulary(template) - words)
        if template in kept and new:
            raise DataError(
                f"the held-out phrasing {template!r} has words that no training question has: {', '.join(new)}",
                hint="Use them in the grammar, ask more questions for each definition, or move it to unseen_words.",
            )
    for template in phrasings.unseen_words:
        if template in kept and not vocabulary(template) - words:
            raise DataError(
                f"every word of the phrasing {template!r} occurs in training questions",
                hint="Give it a new word, or move it to held_out.",
            )
