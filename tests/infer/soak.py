"""Random traffic for a long time: cancels, listeners that fail, overlong prompts, missed deadlines, a full queue.

Every answer that comes is compared with the right one, and at the end nothing may be left: no block, no request.

    ngram     float32, guesses by look-up; right is what `generate` of transformers says
    draft     the same, guesses by a copy of the model, which are always right
    native    bfloat16 by the step in C, where there is a compiler; right is what a request gets alone
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import psutil
import torch

from catena.core.errors import EnvironmentProblem, UsageError
from catena.core.generate import Delta, Request, SamplingParams
from catena.infer.capacity import EngineConfig
from catena.infer.engine import Engine
from tests.infer import test_native
from tests.infer.architectures import CONTEXT, VOCABULARY, build
from tests.infer.test_parity import Numbers

ANSWER = 12
PROMPTS = 24
CALLERS = 6
KINDS = ("ngram", "draft", "native")
TIGHT: dict[str, Any] = {
    "block_size": 4,
    "token_budget": 40,
    "max_running": 6,
    "max_waiting": 8,
    "cache_bytes": 1 << 16,
}


@dataclass
class Tally:
    """What came of the requests, and the memory of the process as they were answered, in bytes."""

    ends: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)
    stats: dict[str, float] = field(default_factory=dict)


def soak(requests: int, seed: int = 0, kind: str = "ngram") -> Tally:
    """Send so many requests from several threads at once; returns what came of them."""
    chance = random.Random(seed)
    prompts = [[chance.randrange(2, VOCABULARY) for _ in range(chance.randint(1, 60))] for _ in range(PROMPTS)]
    expected = [_alone(prompt) if kind == "native" else _by_generate(prompt) for prompt in prompts]
    guessing: dict[str, Any] = {"speculation": "draft" if kind == "draft" else "ngram", "draft_model": "a copy"}
    engine = Engine(_model(kind), Numbers(), EngineConfig(**TIGHT, **guessing), _model(kind))
    assert (engine.runner.native is not None) == (kind == "native")
    tally = Tally()

    def caller(number: int) -> None:
        draws = random.Random(seed * 1000 + number)
        for at in range(number, requests, CALLERS):
            which = draws.randrange(PROMPTS)
            end = _one(engine, f"{at}", prompts[which], draws, tally, expected[which])
            tally.ends[end] += 1
            if at % 50 == 0:
                tally.memory.append(psutil.Process().memory_info().rss)

    threads = [threading.Thread(target=caller, args=(number,)) for number in range(CALLERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    deadline = time.monotonic() + 30
    while engine.stats()["running"] + engine.stats()["waiting"] and time.monotonic() < deadline:
        time.sleep(0.01)
    tally.stats = dict(engine.stats())
    engine.close()
    return tally


def _model(kind: str) -> Any:
    return test_native.build("llama") if kind == "native" else build("llama")


def _alone(prompt: list[int]) -> list[int]:
    engine = Engine(_model("native"), Numbers(), EngineConfig(max_running=1))
    [done] = engine.generate([Request("alone", prompt, SamplingParams(max_tokens=ANSWER))])
    engine.close()
    return list(done.token_ids)


def _by_generate(prompt: list[int]) -> list[int]:
    ids = torch.tensor([prompt])
    out = build("llama").generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=ANSWER, do_sample=False)
    return out[0, len(prompt) :].tolist()  # type: ignore[no-any-return]


def _one(engine: Engine, name: str, prompt: list[int], draws: random.Random, tally: Tally, expected: list[int]) -> str:
    """Send one request in one of the ways; returns how it ended."""
    kind = draws.choices(["plain", "cancel", "gone", "long", "late", "burst"], [60, 10, 8, 4, 8, 10])[0]
    over = threading.Event()
    got: list[Any] = []

    def on_delta(delta: Delta) -> None:
        if delta.completion is not None:
            got.append(delta.completion)
            over.set()
        elif kind == "gone":
            over.set()
            raise ConnectionError("the client is gone")

    params = SamplingParams(max_tokens=ANSWER)
    deadline = draws.uniform(0, 0.01) if kind == "late" else None
    request = Request(name, prompt * CONTEXT if kind == "long" else prompt, params, deadline=deadline)
    try:
        engine.submit(request, on_delta)
    except UsageError:
        return "refused: too long"
    except EnvironmentProblem:
        time.sleep(draws.uniform(0, 0.04))  # as one does who is told to come back
        return "refused: full"
    if kind == "burst":  # more than the queue takes
        with suppress(EnvironmentProblem):
            for number in range(16):
                engine.submit(Request(f"{name}/{number}", prompt, params), lambda delta: None)
    if kind == "cancel":
        time.sleep(draws.uniform(0, 0.01))
        engine.cancel(name)
    if not over.wait(60):
        tally.wrong.append(f"{name} ({kind}) never ended")
        return "stuck"
    if not got:
        return "listener failed"
    answer = list(got[0].token_ids)
    if answer != expected[: len(answer)] or (got[0].finish_reason == "length" and answer != expected):
        tally.wrong.append(f"{name} ({kind}): {answer} is not {expected}")
    return str(got[0].finish_reason)
