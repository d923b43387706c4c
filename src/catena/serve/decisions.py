"""`POST /v1/decisions`: typed questions about an input, each answered with a probability for every allowed answer.

OpenAI's form. `predicate` is the probability that a statement is true; `choice` one of given values; `score` a place on
ordered levels, whose `score` is the mean of the levels' numbers (from 0) by their probabilities.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from catena.core.decide import answer_requests, probabilities
from catena.core.generate import Completion, Message
from catena.serve.completions import Text
from catena.serve.endpoint import Endpoint, Reply, collect
from catena.serve.models import Target
from catena.serve.wire import Body, Part, WireError

AT_ONCE = 32
"""Answers that are scored at once; a question with more takes several turns, so that others get theirs."""

LONG = 64
"""Tokens of an input from which on it is worth a step to read it only once."""


class InputText(Part):
    """A piece of text."""

    type: Literal["input_text", "output_text"]
    text: str


class InputMessage(Part):
    """A message of the input; only text is taken."""

    type: Literal["message"] = "message"
    role: Literal["user", "developer", "system", "assistant"]
    content: str | list[InputText]

    def message(self) -> Message:
        """Return it in Catena's own form."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return Message("system" if self.role == "developer" else self.role, text)


class Predicate(Part):
    """Is it true?"""

    type: Literal["predicate"]
    instructions: Text
    name: str | None = None

    @property
    def answers(self) -> list[tuple[Any, str, str | None]]:
        """(value, text, description) of each."""
        return [(True, "true", None), (False, "false", None)]

    def body(self, shares: Sequence[float]) -> dict[str, Any]:
        """Return the answer in OpenAI's form."""
        return {"type": "predicate", "name": self.name, "probability": shares[0]}


class ChoiceValue(Part):
    """One of several values."""

    value: Text | bool
    description: str | None = None


class ChoiceQuestion(Part):
    """Which one?"""

    type: Literal["choice"]
    instructions: Text
    choices: Annotated[list[ChoiceValue], Field(min_length=2, max_length=255)]
    name: str | None = None

    @property
    def answers(self) -> list[tuple[Any, str, str | None]]:
        """(value, text, description) of each."""
        return [
            (one.value, one.value if isinstance(one.value, str) else str(one.value).lower(), one.description)
            for one in self.choices
        ]

    def body(self, shares: Sequence[float]) -> dict[str, Any]:
        """Return the answer in OpenAI's form."""
        best = max(range(len(shares)), key=lambda at: shares[at])
        return {
            "type": "choice",
            "name": self.name,
            "choice": self.choices[best].value,
            "confidence": shares[best],
            "probabilities": [
                {"value": one.value, "probability": share} for one, share in zip(self.choices, shares, strict=True)
            ],
        }


class Level(Part):
    """One level of a scale."""

    label: Text
    description: str | None = None


class ScoreQuestion(Part):
    """How much?"""

    type: Literal["score"]
    instructions: Text
    levels: Annotated[list[Level], Field(min_length=2, max_length=255)]
    name: str | None = None

    @property
    def answers(self) -> list[tuple[Any, str, str | None]]:
        """(value, text, description) of each."""
        return [(number, one.label, one.description) for number, one in enumerate(self.levels)]

    def body(self, shares: Sequence[float]) -> dict[str, Any]:
        """Return the answer in OpenAI's form."""
        return {
            "type": "score",
            "name": self.name,
            "score": sum(number * share for number, share in enumerate(shares)),
            "confidence": max(shares),
            "probabilities": [
                {"label": one.label, "value": number, "probability": share}
                for number, (one, share) in enumerate(zip(self.levels, shares, strict=True))
            ],
        }


Question = Annotated[Predicate | ChoiceQuestion | ScoreQuestion, Field(discriminator="type")]


class DecisionRequest(Body):
    """The body of `POST /v1/decisions`."""

    NEUTRAL: ClassVar[Mapping[str, tuple[Any, ...]]] = {"prompt_cache_options": ()}

    input: Text | Annotated[list[InputMessage], Field(min_length=1)]
    questions: Annotated[list[Question], Field(min_length=1, max_length=400)]
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None

    @property
    def messages(self) -> list[Message]:
        """The input as a conversation."""
        return [Message("user", self.input)] if isinstance(self.input, str) else [one.message() for one in self.input]


class Decisions(Endpoint[DecisionRequest]):
    """The decisions endpoint."""

    route = "decisions"
    body = DecisionRequest

    async def answer(self, request: DecisionRequest, target: Target, reply: Reply) -> None:
        """Answer each question."""
        if len(request.questions) > self.config.max_prompts:
            raise WireError(f"questions must be at most {self.config.max_prompts}", param="questions")
        for number, question in enumerate(request.questions):
            texts = [text for _, text, _ in question.answers]
            if len(set(texts)) != len(texts):
                raise WireError("two answers have the same text", param=f"questions.{number}", code="invalid_value")
        answers: list[dict[str, Any]] = []
        counted = cached = 0
        for question in request.questions:
            completions, before = await self._ask(request, question, target, reply)
            answers.append(question.body(probabilities(completions)))
            counted += before
            cached += min(before, completions[0].cached_tokens)
        usage = {
            "input_tokens": counted,
            "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
            "output_tokens": 0,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": counted,
        }
        await reply.json({"model": target.name, "answers": answers, "usage": usage})

    async def _ask(
        self, request: DecisionRequest, question: Question, target: Target, reply: Reply
    ) -> tuple[list[Completion], int]:
        id = f"decision-{secrets.token_hex(12)}"
        prompt = asked(request.messages, question)
        texts = [text for _, text, _ in question.answers]
        requests, before = await self.run(
            lambda: answer_requests(target.codec, prompt, texts, id=id, adapter=target.adapter)
        )
        # Of a long input the first answer goes ahead: the others find what it read in the prefix cache.
        first = 1 if before >= LONG else AT_ONCE
        found = await collect(requests[:first], target.generator, reply)
        for start in range(first, len(requests), AT_ONCE):
            found += await collect(requests[start : start + AT_ONCE], target.generator, reply)
        return found, before


def asked(messages: Sequence[Message], question: Predicate | ChoiceQuestion | ScoreQuestion) -> list[Message]:
    """Return a conversation with the question at its end, as part of its last message where that is the user's."""
    lines = [f"- {text}: {told}" if told else f"- {text}" for _, text, told in question.answers]
    text = "\n".join([question.instructions, "Answer with exactly one of:", *lines])
    *before, last = messages
    if last.role == "user":
        return [*before, Message("user", f"{last.content}\n\n{text}")]
    return [*messages, Message("user", text)]
