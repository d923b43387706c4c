"""The compiled decode step: the same answers, only where it may stand in for the plain one."""

from __future__ import annotations

import random
from functools import partial

import pytest
import torch

from catena.core.generate import Request, SamplingParams
from catena.infer.capacity import EngineConfig
from catena.infer.compiled import CompiledStep
from catena.infer.engine import Engine

from .architectures import VOCABULARY, build
from .test_parity import Numbers


def answers(engine: Engine, count: int) -> dict[str, tuple[int, ...]]:
    chance = random.Random(0)
    requests = [
        Request(str(at), [chance.randrange(2, VOCABULARY) for _ in range(3 + 5 * at)], SamplingParams(max_tokens=8))
        for at in range(count)
    ]
    return {done.request_id: done.token_ids for done in engine.generate(requests)}


@pytest.mark.filterwarnings("ignore")  # torch's compiler uses what torch deprecates
def test_a_compiled_step_answers_as_the_plain_one(monkeypatch: pytest.MonkeyPatch) -> None:
    # Its own code generator takes a minute; what is ours is done with when the graph is there.
    monkeypatch.setattr("torch.compile", partial(torch.compile, backend="aot_eager"))
    plain = Engine(build("llama"), Numbers())
    expected = answers(plain, 5)
    plain.close()
    engine = Engine(build("llama"), Numbers(), EngineConfig(compile_step=True))
    compiled = engine.runner.compiled
    assert isinstance(compiled, CompiledStep)
    compiled.wait()
    assert compiled.ready(1)
    assert compiled.ready(5)
    steps = []
    call = CompiledStep.__call__
    monkeypatch.setattr(CompiledStep, "__call__", lambda self, *row: steps.append(1) or call(self, *row))
    assert answers(engine, 5) == expected
    assert answers(engine, 1) == {"0": expected["0"]}
    assert len(steps) > 7
    engine.close()


def test_what_cannot_be_compiled_runs_as_before(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no compiler")

    monkeypatch.setattr("torch.compile", broken)
    engine = Engine(build("llama"), Numbers(), EngineConfig(compile_step=True))
    assert engine.runner.compiled is not None
    engine.runner.compiled.wait()
    assert not engine.runner.compiled.ready(1)
    assert "no compiler" in caplog.text
    assert len(answers(engine, 3)) == 3
    engine.close()
