"""Asking for log-likelihoods with a tokenizer that joins the end of a prompt and the beginning of a choice."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Any

import pytest

from catena.core.errors import DataError
from catena.core.events import Events
from catena.core.generate import Completion, Request, TokenLogprob
from catena.evaluate.ask import Answers, Asker

WORDS = ["<start>", "我", "喜", "欢", "喜欢", "喜欢你", "你", "他", "很"]


class Joining:
    """Cuts a text into the longest words that it knows, from the left."""

    ends: Collection[int] = ()
    end = None
    takes_tools = False

    def tokens(self, prompt: Any, tools: Any = ()) -> list[int]:
        return self.continuation(prompt)

    def continuation(self, text: str) -> list[int]:
        found = []
        while text:
            word = max((one for one in WORDS if text.startswith(one)), key=len)
            found.append(WORDS.index(word))
            text = text[len(word) :]
        return found


class Even:
    """Finds every token as likely as its number says: the logarithm is that, below zero."""

    codec = Joining()

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        for request in requests:
            ids = [int(one) for one in request.prompt if isinstance(one, int)]
            told = tuple(TokenLogprob(one, -float(one)) for one in ids[request.params.prompt_logprobs_from :])
            yield Completion(request.id, "", (), "length", len(ids), prompt_logprobs=told)

    def close(self) -> None:
        pass


@pytest.fixture
def asker() -> Asker:
    return Asker(Even(), Answers(None), Events(), context=64, start=(0,))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("prompt", "choices", "sums"),
    [
        ("我很", ["喜欢你", "喜欢他"], [-5, -11]),  # nothing is joined: the choices alone
        ("我喜欢", ["你", "他"], [-5, -11]),  # 喜欢你 is one token, so 喜欢 counts in the other as well
        ("喜欢", ["你", "他"], [-5, -11]),  # not one token of the prompt is left: behind the start token
        ("", ["你", "他"], [-6, -7]),
    ],
)
def test_choices_are_compared_from_the_same_place(
    asker: Asker, prompt: str, choices: list[str], sums: list[float]
) -> None:
    (told,) = asker.likelihoods([[(prompt, one) for one in choices]], "t")
    assert [one.logprob for one in told] == sums
    assert all(one.tokens for one in told)


@pytest.mark.parametrize("prompt", ["我很", "我喜欢", ""])
def test_a_choice_without_tokens_is_refused(asker: Asker, prompt: str) -> None:
    with pytest.raises(DataError, match="the choice '' has no tokens"):
        asker.likelihoods([[(prompt, "他"), (prompt, "")]], "t")
