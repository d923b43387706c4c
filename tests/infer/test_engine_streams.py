"""Streams of the engine: the same text, ends, and what fails takes nobody else down."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from catena.core.errors import EnvironmentProblem, UsageError
from catena.core.generate import Completion, Delta, Request, SamplingParams
from catena.infer.engine import Engine

from .asking import answers, prompts


class Listener:
    """Collects the deltas of one request."""

    def __init__(self) -> None:
        self.deltas: list[Delta] = []
        self.done = threading.Event()

    def __call__(self, delta: Delta) -> None:
        self.deltas.append(delta)
        if delta.completion is not None:
            self.done.set()

    def wait(self) -> Completion:
        assert self.done.wait(20), "no answer came"
        completion = self.deltas[-1].completion
        assert completion is not None
        return completion


def test_streams_give_the_same_text_as_generate(engine_of: Callable[..., Engine], tokenizer: Any) -> None:
    engine = engine_of()
    asked = prompts(7, len(tokenizer))
    whole = answers(engine_of(), asked, max_tokens=30)
    listeners = [Listener() for _ in asked]
    for index, (prompt, listener) in enumerate(zip(asked, listeners, strict=True)):
        engine.submit(Request(str(index), prompt, SamplingParams(max_tokens=30)), listener)
    for expected, listener in zip(whole, listeners, strict=True):
        completion = listener.wait()
        assert completion.token_ids == expected.token_ids
        assert "".join(delta.text for delta in listener.deltas) == completion.text
        assert len(listener.deltas) > 3
        assert "\ufffd" not in "".join(d.text for d in listener.deltas[:-1]) or "\ufffd" in expected.text


def test_generate_and_submit_work_at_the_same_time(engine_of: Callable[..., Engine], tokenizer: Any) -> None:
    engine = engine_of(max_running=4)
    asked = prompts(10, len(tokenizer), longest=20)
    expected = [c.token_ids for c in answers(engine_of(), asked, max_tokens=12)]
    listener = Listener()
    stream = engine.generate(Request(str(i), p, SamplingParams(max_tokens=12)) for i, p in enumerate(asked))
    found = {(first := next(stream)).request_id: first}
    engine.submit(Request("0", asked[0], SamplingParams(max_tokens=12)), listener)
    found.update({completion.request_id: completion for completion in stream})
    assert listener.wait().token_ids == expected[0]
    assert [found[str(i)].token_ids for i in range(10)] == expected


def test_cancel_ends_a_request_and_frees_its_blocks(engine_of: Callable[..., Engine]) -> None:
    engine = engine_of()
    listener = Listener()
    started = threading.Event()

    def on_delta(delta: Delta) -> None:
        listener(delta)
        started.set()
        if delta.completion is None:
            time.sleep(0.005)

    engine.submit(Request("x", [5, 6, 7], SamplingParams(max_tokens=250, temperature=1.0, seed=0)), on_delta)
    assert started.wait(20)
    engine.cancel("x")
    engine.cancel("nobody")
    assert listener.wait().finish_reason == "cancelled"
    assert engine.stats()["cache_blocks_used"] == 0
    assert engine.stats()["cancelled_total"] == 1


def test_a_full_queue_refuses_at_once_and_leaks_nothing(engine_of: Callable[..., Engine]) -> None:
    engine = engine_of(max_running=1, max_waiting=1)
    gate = threading.Event()
    listeners = [Listener() for _ in range(2)]

    def slow(delta: Delta) -> None:
        gate.wait(20)
        listeners[0](delta)

    engine.submit(Request("a", [5], SamplingParams(max_tokens=4)), slow)
    engine.submit(Request("b", [5], SamplingParams(max_tokens=4)), listeners[1])
    with pytest.raises(EnvironmentProblem, match="full"):
        engine.submit(Request("c", [5], SamplingParams(max_tokens=4)), Listener())
    gate.set()
    assert [listener.wait().finish_reason for listener in listeners] == ["length", "length"]
    assert engine.stats()["cache_blocks_used"] == 0


def test_two_requests_with_one_id_are_refused(engine_of: Callable[..., Engine]) -> None:
    engine = engine_of()
    gate = threading.Event()
    engine.submit(Request("x", [5], SamplingParams(max_tokens=4)), lambda delta: [gate.wait(20)].clear())
    with pytest.raises(UsageError, match="'x'"):
        engine.submit(Request("x", [5]), Listener())
    gate.set()


def test_a_listener_that_fails_takes_nobody_else_down(
    engine_of: Callable[..., Engine], caplog: pytest.LogCaptureFixture
) -> None:
    engine = engine_of()
    good = Listener()

    def bad(delta: Delta) -> None:
        raise RuntimeError("the event loop is closed")

    engine.submit(Request("bad", [5, 6], SamplingParams(max_tokens=200)), bad)
    engine.submit(Request("good", [5, 6], SamplingParams(max_tokens=20)), good)
    assert good.wait().finish_reason == "length"
    assert "its listener failed" in caplog.text


def test_an_engine_that_dies_fails_everyone_and_refuses_the_next(
    engine_of: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine = engine_of(max_running=1)
    monkeypatch.setattr(engine.runner, "run", lambda chunks: 1 / 0)
    listeners = [Listener() for _ in range(3)]
    for index, listener in enumerate(listeners):
        try:
            engine.submit(Request(str(index), [5]), listener)
        except EnvironmentProblem:  # it died before this one came
            listener(Delta("", Completion(str(index), "", (), "error", 1)))
    assert [listener.wait().finish_reason for listener in listeners] == ["error"] * 3
    with pytest.raises(EnvironmentProblem, match="ZeroDivisionError"):
        engine.submit(Request("next", [5]), Listener())
    with pytest.raises(EnvironmentProblem, match="ZeroDivisionError"):
        list(engine.generate([Request("next", [5])]))
    assert engine.stats()["alive"] == 0


def test_an_error_in_generate_reaches_its_caller(
    engine_of: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of()
    monkeypatch.setattr(engine.runner, "run", lambda chunks: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        list(engine.generate([Request("x", [5])]))


def test_closing_cancels_what_is_in_flight(engine_of: Callable[..., Engine]) -> None:
    engine = engine_of()
    listener = Listener()
    engine.submit(Request("x", [5], SamplingParams(max_tokens=250)), listener)
    engine.close()
    engine.close()
    assert listener.wait().finish_reason in ("cancelled", "length")
    with pytest.raises(EnvironmentProblem, match="closed"):
        engine.submit(Request("y", [5]), Listener())
