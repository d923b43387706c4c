"""A step is launched before the last one's tokens are read, and nobody can tell from the answers.

What records a step on a GPU is played here by the model's own forward, so that order and accounts are tested anywhere.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence as Many
from typing import Any

import pytest
import torch
from torch import Tensor

from catena.core.generate import Delta, Request, SamplingParams
from catena.infer.capacity import EngineConfig
from catena.infer.engine import Engine
from catena.infer.runner import Runner
from catena.infer.scheduler import Chunk

from .architectures import build
from .test_graphs import needs_gpu
from .test_parity import ANSWER, Numbers, answers, prompts


class Steps:
    """Computes at once what a GPU would compute later; `told` is what happened, in order."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self.told: list[str] = []

    def takes(self, rows: int) -> bool:
        return True

    def __call__(self, row: Many[Chunk], tokens: Tensor | None = None) -> Tensor:
        runner, cache = self._runner, self._runner.cache
        assert cache is not None
        self.told.append("known" if tokens is None else "ahead")
        ids = torch.tensor([chunk.ids[0] for chunk in row]) if tokens is None else tokens
        at = torch.tensor([chunk.start for chunk in row])
        size = cache.block_size
        slots = [one.sequence.blocks[one.start // size] * size + one.start % size for one in row]
        batch = runner._batch(row, torch.tensor(slots), cache)
        return runner._forward(ids[None], at[None], batch, torch.arange(len(row)))


def engine_of(ahead: bool = True, **options: Any) -> tuple[Engine, Steps]:
    engine = Engine(build("llama"), Numbers(), EngineConfig(**{"block_size": 8, "ahead": ahead, **options}))
    assert isinstance(engine.runner, Runner)
    steps = Steps(engine.runner)
    engine.runner.graphs = steps  # type: ignore[assignment]
    return engine, steps


def both(requests: Many[Request], **options: Any) -> tuple[dict[str, Any], Engine]:
    """Return the answers, which are the same without flying ahead, and the engine that flew."""
    found = []
    for ahead in (False, True):
        engine, _ = engine_of(ahead, **options)
        found.append({one.request_id: one for one in engine.generate(requests)})
        assert engine.scheduler.pool.free == engine.scheduler.pool.total
        engine.close()
    assert found[0] == found[1]
    return found[1], engine


def test_answers_are_the_same_and_most_steps_fly() -> None:
    engine, steps = engine_of()
    expected = answers(Engine(build("llama"), Numbers()), range(17))
    assert answers(engine, range(17)) == expected
    assert steps.told.count("ahead") >= ANSWER - 2
    assert engine.stats()["steps_ahead_total"] == steps.told.count("ahead")
    engine.close()


def test_ends_of_all_kinds_seeds_and_lengths() -> None:
    given, requests = prompts(), []
    greedy = answers(Engine(build("llama"), Numbers()), range(6))
    for at, prompt in enumerate(given):
        params: dict[str, Any] = {"max_tokens": ANSWER if at < 6 else 1 + at % 13}
        if at < 6 and at % 2:
            params["stop_token_ids"] = (greedy[at][at],)  # ends while the next step has it in its row
        elif at < 6:
            params["stop"] = (str(greedy[at][at + 1]),)
        elif at % 3 == 0:
            params |= {"temperature": 1.5, "seed": at, "top_k": 20, "top_p": 0.9}
        requests.append(Request(str(at), prompt, SamplingParams(**params)))
    done, engine = both(requests)
    assert {one.finish_reason for one in done.values()} == {"stop", "length"}
    assert engine.ahead.count > 10
    # Fewer at once than there are: who waits is let in as others end. And blocks for two or three: some are pushed out.
    _, engine = both(requests, max_running=3)
    assert engine.ahead.count > 10
    _, engine = both(requests, cache_bytes=engine.runner.layout.bytes_per_token * 128, max_running=8)
    assert engine.scheduler.preemptions


def test_what_depends_on_unknown_tokens_does_not_fly() -> None:
    for params in (
        {"logprobs": 1},
        {"repetition_penalty": 1.3},
        {"presence_penalty": 0.5},
        {"logit_bias": {5: 9.0}},
    ):
        _, engine = both([Request("a", prompts()[3], SamplingParams(max_tokens=6, **params))])  # type: ignore[arg-type]
        assert not engine.ahead.count
    _, engine = both([Request("a", prompts()[3], SamplingParams(max_tokens=6))], speculation="ngram")
    assert not engine.ahead.count


def test_the_next_step_is_launched_before_a_token_is_told_and_none_too_many() -> None:
    engine, steps = engine_of()
    done = threading.Event()

    def heard(delta: Delta) -> None:
        steps.told += [f"token {token}" for token in delta.token_ids]
        if delta.completion is not None:
            done.set()

    engine.submit(Request("a", prompts()[3], SamplingParams(max_tokens=5)), heard)
    assert done.wait(60)
    engine.close()
    kinds = [told.split()[0] for told in steps.told]
    assert kinds == ["token", "known", "ahead", "token", "ahead", "token", "ahead", "token", "token"]


def test_who_leaves_while_a_step_flies_leaves_nothing() -> None:
    engine, _ = engine_of()
    alone = answers(engine, range(1, 2))[1]
    reasons: dict[str, str] = {}
    over = threading.Event()

    def heard(name: str, delta: Delta) -> None:
        if delta.completion is not None:
            reasons[name] = delta.completion.finish_reason
            if name == "stays":
                found.append(list(delta.completion.token_ids))
                over.set()
        elif name == "goes":
            engine.cancel("goes")

    found: list[list[int]] = []
    long = SamplingParams(max_tokens=60, ignore_end=True)
    engine.submit(Request("goes", prompts()[4], long), lambda delta: heard("goes", delta))
    engine.submit(
        Request("stays", prompts()[1], SamplingParams(max_tokens=ANSWER)), lambda delta: heard("stays", delta)
    )
    assert over.wait(60)
    assert found == [alone]
    assert reasons["goes"] == "cancelled"
    # Its blocks went to somebody else or are named: what is read again is right.
    assert answers(engine, range(17)) == answers(Engine(build("llama"), Numbers()), range(17))
    engine.close()
    assert engine.ahead.flight is None
    assert engine.scheduler.pool.free == engine.scheduler.pool.total


def test_an_engine_that_is_closed_in_flight_says_so_to_everyone() -> None:
    engine, _ = engine_of()
    reasons: list[str] = []
    begun = threading.Event()

    def heard(delta: Delta) -> None:
        begun.set()
        if delta.completion is not None:
            reasons.append(delta.completion.finish_reason)

    engine.submit(Request("a", prompts()[3], SamplingParams(max_tokens=60, ignore_end=True)), heard)
    assert begun.wait(60)
    engine.close()
    assert reasons in (["cancelled"], ["length"])
    assert engine.ahead.flight is None


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_on_a_gpu_answers_are_the_same(temperature: float) -> None:
    found = []
    for ahead in (False, True):
        engine = Engine(build("qwen3").cuda(), Numbers(), EngineConfig(block_size=16, ahead=ahead))
        params = SamplingParams(max_tokens=40, temperature=temperature, seed=3)
        requests = [Request(str(at), prompt, params) for at, prompt in enumerate(prompts())]
        found.append({one.request_id: one.token_ids for one in engine.generate(requests)})
        assert bool(engine.ahead.count) == ahead
        engine.close()
    assert found[0] == found[1]
