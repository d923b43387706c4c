"""Prompts that tests ask an engine, and its answers."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from catena.core.generate import Completion, Generator as Generates, Request, SamplingParams


def prompts(count: int, vocabulary: int, longest: int = 90) -> list[list[int]]:
    draws = random.Random(count)
    return [[draws.randrange(5, vocabulary) for _ in range(draws.randint(1, longest))] for _ in range(count)]


def answers(engine: Generates, asked: Sequence[Sequence[int]], **params: Any) -> list[Completion]:
    requests = [Request(str(i), prompt, SamplingParams(**params)) for i, prompt in enumerate(asked)]
    done = {completion.request_id: completion for completion in engine.generate(requests)}
    return [done[str(i)] for i in range(len(asked))]
