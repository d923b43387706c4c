"""Engines of others: started, watched, spoken to and ended. A scripted one stands in for them."""

from __future__ import annotations

import json
import os
import queue
import signal
import socket
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from catena.core.errors import EnvironmentProblem, PortInUse, RemoteError, UsageError
from catena.core.generate import (
    GENERATORS,
    Delta,
    Generator,
    Grammar,
    Message,
    Request,
    SamplingParams,
    StreamingGenerator,
)
from catena.infer.backends.remote import RemoteGenerator
from catena.models import checkpoint

PROMPT = "the quick brown fox"
FAST = {"health_timeout_s": 20.0, "stop_timeout_s": 5.0, "start_timeout_s": 60.0, "drain_s": 0.2}
NATIVE = ("vllm", "sglang", "lmdeploy")
Open = Callable[..., RemoteGenerator]


@pytest.fixture(scope="module")
def folder(model_of: Callable[..., Any], tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder: the engines are given its path, and its tokenizer is used here."""
    target = tmp_path_factory.mktemp("model") / "tiny"
    checkpoint.save(model_of(), tokenizer, target)
    return target


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scripted engine as a program."""
    path = tmp_path_factory.mktemp("engine") / "vllm"
    source = Path(__file__).with_name("fake_engine.py")
    path.write_text(f'#!/bin/sh\nexec {sys.executable} -S {source} "$@"\n', encoding="utf-8")
    path.chmod(0o755)
    return path


@pytest.fixture(scope="module")
def well(folder: Path, program: Path) -> Iterator[Open]:
    """Return a function that gives the scripted engine as one of ours, without mischief; many tests share it."""
    opened: dict[str, RemoteGenerator] = {}

    def give(name: str = "vllm") -> RemoteGenerator:
        if name not in opened:
            environment = {"FAKE_PAUSE": "0.01"}
            opened[name] = GENERATORS.load(name)(folder, **FAST, program=str(program), environment=environment)
        return opened[name]

    yield give
    for generator in opened.values():
        generator.close()


@pytest.fixture
def start(folder: Path, program: Path) -> Iterator[Open]:
    """Return a function that starts the scripted engine as one of ours."""
    opened: list[RemoteGenerator] = []

    def make(name: str = "vllm", fake: str = "", pause: float = 0.0, **options: Any) -> RemoteGenerator:
        environment = {"FAKE": fake, "FAKE_PAUSE": str(pause), **options.pop("environment", {})}
        asked = {**FAST, "program": str(program), "environment": environment, **options}
        opened.append(GENERATORS.load(name)(folder, **asked))
        return opened[-1]

    yield make
    for generator in opened:
        generator.close()


def deltas_of(generator: RemoteGenerator, request: Request, *, until: int | None = None) -> list[Delta]:
    """Submit a request and wait for its deltas: all, or the first few."""
    told: queue.SimpleQueue[Delta] = queue.SimpleQueue()
    generator.submit(request, told.put)
    found: list[Delta] = []
    while (until is None or len(found) < until) and (not found or found[-1].completion is None):
        found.append(told.get(timeout=60))
    return found


def request(prompt: Any = PROMPT, id: str = "one", **params: Any) -> Request:
    """Return a request."""
    return Request(id, prompt, SamplingParams(**{"max_tokens": 6, "ignore_end": True, **params}))


def ids_of(generator: RemoteGenerator, text: str = PROMPT) -> list[int]:
    """Return what the engine is sent for a text."""
    return generator.codec.tokens(text)


class TestSpeaking:
    """Each dialect, end to end."""

    @pytest.mark.parametrize("name", NATIVE)
    def test_a_streamed_answer_has_the_text_of_its_tokens(self, well: Open, name: str) -> None:
        generator = well(name)
        found = deltas_of(generator, request(logprobs=0))
        completion = found[-1].completion
        assert completion is not None
        prompt = ids_of(generator)
        expected = [prompt[at % len(prompt)] for at in range(6)]
        assert list(completion.token_ids) == expected
        assert completion.text == generator.codec.text(expected) == "".join(delta.text for delta in found)
        assert [one for delta in found for one in delta.token_ids] == expected
        assert [entry.token_id for entry in completion.token_logprobs] == expected
        assert completion.token_logprobs[0].logprob == pytest.approx(-0.5 - expected[0] / 1000)
        assert (completion.finish_reason, completion.prompt_tokens) == ("length", len(prompt))

    @pytest.mark.parametrize("name", NATIVE)
    def test_many_requests_are_answered_each_with_its_own(self, start: Open, name: str) -> None:
        generator = start(name, max_running=3)
        texts = {f"r{number}": f"fox {number}" for number in range(12)}
        found = {one.request_id: one for one in generator.generate(request(text, id) for id, text in texts.items())}
        assert found.keys() == texts.keys()
        for id, text in texts.items():
            prompt = ids_of(generator, text)
            assert list(found[id].token_ids) == [prompt[at % len(prompt)] for at in range(6)]

    @pytest.mark.parametrize("name", ["vllm", "sglang"])
    def test_a_prompt_is_scored(self, well: Open, name: str) -> None:
        generator = well(name)
        [completion] = generator.score([Request("s", PROMPT)])
        assert list(completion.logprobs) == pytest.approx([-0.5 - id / 1000 for id in ids_of(generator)[1:]])

    def test_a_stop_text_ends_the_answer_here_and_there(self, well: Open) -> None:
        generator = well()
        [completion] = generator.generate([request(max_tokens=40, stop=("qui",))])
        assert completion.text == "the "
        assert completion.finish_reason == "stop"

    def test_the_models_end_token_ends_the_answer(self, well: Open) -> None:
        generator = well()
        end = min(generator.codec.ends)
        found = deltas_of(generator, request([40, 41, end, 42], max_tokens=9, ignore_end=False))
        completion = found[-1].completion
        assert completion is not None
        assert (completion.token_ids, completion.finish_reason) == ((40, 41, end), "stop")

    def test_a_conversation_goes_by_the_models_chat_template(self, well: Open) -> None:
        generator = well()
        messages = [Message("user", "fox")]
        [completion] = generator.generate([request(messages)])
        assert completion.prompt_tokens == len(generator.codec.tokens(messages))

    def test_it_is_a_generator_for_servers(self, well: Open) -> None:
        generator: StreamingGenerator = well()
        assert isinstance(generator, StreamingGenerator)
        told = generator.stats()
        assert (told["alive"], told["context_tokens"]) == (1.0, 256.0)

    @pytest.mark.parametrize(
        ("name", "params", "message"),
        [
            ("lmdeploy", {"logit_bias": {5: 1.0}}, "LMDeploy does not take logit_bias"),
            ("lmdeploy", {"logprobs": 3}, "LMDeploy tells at most 0 alternatives"),
            ("lmdeploy", {"max_tokens": 0}, "LMDeploy tells no log-probabilities of a prompt"),
            ("lmdeploy", {"grammar": Grammar("regex", "a+")}, "cannot hold an answer to a grammar of the kind regex"),
            ("vllm", {"max_tokens": 300}, "the context is 256 tokens"),
            ("vllm", {"top_p": 0.0}, "top_p must be above 0"),
        ],
    )
    def test_what_an_engine_cannot_do_is_refused_by_name(
        self, well: Open, name: str, params: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(UsageError, match=message):
            well(name).submit(request(**params), print)

    def test_a_prompt_over_the_context_is_refused_before_it_is_sent(self, well: Open) -> None:
        with pytest.raises(UsageError, match=r"the prompt has 400 tokens; the context is 256 tokens"):
            well().submit(request([5] * 400), print)

    def test_what_the_engine_refuses_is_told_in_its_words(self, start: Open) -> None:
        generator = start(fake="refuse")
        with pytest.raises(UsageError, match="vLLM refused: never heard of it"):
            list(generator.generate([request()]))
        last = deltas_of(generator, request())[-1].completion
        assert last is not None
        assert last.finish_reason == "error"
        assert "never heard of it" in str(last.error)

    def test_nonsense_is_an_error_and_not_an_answer(self, start: Open) -> None:
        with pytest.raises(RemoteError, match="cannot be read"):
            list(start(fake="nonsense").generate([request()]))

    def test_a_stream_that_is_cut_is_an_error(self, start: Open) -> None:
        last = deltas_of(start(fake="cut"), request())[-1].completion
        assert last is not None
        assert last.finish_reason == "error"
        assert "broke off" in str(last.error)


class TestProcess:
    """The child: start, ready, crash, silence, end."""

    def test_a_slow_start_is_waited_for(self, start: Open) -> None:
        assert start(fake="slow").stats()["alive"] == 1.0

    def test_one_that_is_too_slow_is_ended(self, start: Open) -> None:
        with pytest.raises(EnvironmentProblem, match=r"not ready after 0\.3 s"):
            start(fake="slow", start_timeout_s=0.3)

    def test_a_crash_at_the_start_tells_the_last_lines(self, start: Open) -> None:
        with pytest.raises(EnvironmentProblem) as caught:
            start(fake="crash-at-start")
        assert "vLLM ended with exit code 1 before it was ready" in caught.value.message
        assert "loading weights\ntorch.OutOfMemoryError: CUDA out of memory" in caught.value.message

    def test_a_wanted_port_that_is_taken_is_told_before_anything_starts(self, start: Open) -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            with pytest.raises(PortInUse, match=f"port {port} on 127.0.0.1 is in use"):
                start(port=port)

    def test_where_a_free_port_is_snatched_another_is_tried(self, start: Open, tmp_path: Path) -> None:
        marker = tmp_path / "once"
        assert start(environment={"FAKE_ONCE": str(marker)}).stats()["alive"] == 1.0
        assert marker.exists()

    def test_a_crash_in_the_middle_fails_those_under_way_and_all_that_come(self, start: Open) -> None:
        generator = start(fake="die", pause=0.01)
        last = deltas_of(generator, request(max_tokens=30))[-1].completion
        assert last is not None
        assert (last.finish_reason, len(last.token_ids)) == ("error", 3)
        assert "vLLM was ended by SIGABRT" in str(last.error)
        assert "CUDA error: an illegal memory access" in str(last.error)
        assert generator.stats()["alive"] == 0.0
        with pytest.raises(EnvironmentProblem, match="illegal memory access"):
            generator.submit(request(), print)
        with pytest.raises(EnvironmentProblem, match="illegal memory access"):
            list(generator.generate([request()]))

    def test_one_that_is_killed_while_idle_is_seen(self, start: Open) -> None:
        generator = start()
        process = generator.place.process
        assert process is not None
        os.kill(engine_pid(process._child.pid), signal.SIGKILL)
        wait_for(lambda: generator.stats()["alive"] == 0.0)
        with pytest.raises(EnvironmentProblem, match="SIGKILL"):
            wait_for(lambda: generator.submit(request(id=str(time.monotonic())), lambda delta: None))

    def test_one_that_hangs_is_ended_and_told_of(self, start: Open) -> None:
        generator = start(fake="deaf", pause=0.5, health_timeout_s=1.0)
        last = deltas_of(generator, request(max_tokens=60))[-1].completion
        assert last is not None
        assert last.finish_reason == "error"
        assert "does not answer any more (silent for 1 s)" in str(last.error)

    def test_silence_in_the_middle_of_an_answer_is_an_error(self, start: Open) -> None:
        generator = start(fake="hang", silence_timeout_s=0.5)
        last = deltas_of(generator, request(max_tokens=30))[-1].completion
        assert last is not None
        assert "said nothing for 0.5 s" in str(last.error)

    def test_closing_lets_requests_finish_and_ends_the_process(self, start: Open) -> None:
        generator = start(pause=0.02, drain_s=30.0)
        process = generator.place.process
        assert process is not None
        told: queue.SimpleQueue[Delta] = queue.SimpleQueue()
        generator.submit(request(max_tokens=20), told.put)
        told.get(timeout=30)
        generator.close()
        *_, last = [told.get() for _ in range(told.qsize())]
        assert last.completion is not None
        assert last.completion.finish_reason == "length"
        assert not process.alive
        assert not process.log.exists()
        with pytest.raises(EnvironmentProblem, match="closed"):
            generator.submit(request(), print)
        generator.close()

    def test_closing_cancels_what_takes_too_long(self, start: Open) -> None:
        generator = start(fake="hang", drain_s=0.1)
        told: queue.SimpleQueue[Delta] = queue.SimpleQueue()
        generator.submit(request(max_tokens=20), told.put)
        told.get(timeout=30)
        generator.close()
        *_, last = [told.get() for _ in range(told.qsize())]
        assert last.completion is not None
        assert last.completion.finish_reason == "cancelled"

    def test_one_that_will_not_end_is_killed(self, start: Open) -> None:
        generator = start(fake="stubborn", stop_timeout_s=0.3)
        process = generator.place.process
        assert process is not None
        pid = engine_pid(process._child.pid)
        generator.close()
        assert not Path(f"/proc/{pid}").exists()

    def test_the_engine_ends_with_the_guard(self, start: Open) -> None:
        process = start().place.process
        assert process is not None
        pid = engine_pid(process._child.pid)
        os.kill(process._child.pid, signal.SIGKILL)
        process._child.wait()
        wait_for(lambda: not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().split()[2])

    def test_an_engine_that_is_not_here_is_told_with_what_to_do(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PATH", "/nowhere")
        with pytest.raises(EnvironmentProblem, match="SGLang is not here") as caught:
            GENERATORS.load("sglang")(folder)
        assert "pip install sglang" in caught.value.hint

    def test_the_setting_says_where_an_engine_is(
        self, folder: Path, program: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("CATENA_BACKENDS_VLLM", str(program))
        generator = GENERATORS.load("vllm")(folder, **FAST, environment={"FAKE": ""})
        try:
            assert f"serve {folder} --host 127.0.0.1" in generator.place.process.told()
        finally:
            generator.close()


class TestManners:
    """Cancel, deadlines, overload."""

    def test_a_cancelled_request_closes_its_connection(self, start: Open) -> None:
        generator = start(pause=0.05)
        told: queue.SimpleQueue[Delta] = queue.SimpleQueue()
        generator.submit(request(max_tokens=200), told.put)
        told.get(timeout=30)
        generator.cancel("one")
        generator.cancel("nobody")
        while (delta := told.get(timeout=30)).completion is None:
            pass
        assert delta.completion.finish_reason == "cancelled"
        wait_for(lambda: counts(generator)["broken"] == 1)

    def test_cancelling_at_once_still_tells_the_end(self, well: Open) -> None:
        generator = well()
        for number in range(20):
            told: queue.SimpleQueue[Delta] = queue.SimpleQueue()
            generator.submit(request(id=f"r{number}", max_tokens=200), told.put)
            generator.cancel(f"r{number}")
            while (delta := told.get(timeout=30)).completion is None:
                pass
            assert delta.completion.finish_reason == "cancelled"

    def test_a_deadline_ends_a_request(self, well: Open) -> None:
        generator = well()
        late = Request("late", PROMPT, SamplingParams(max_tokens=200, ignore_end=True), deadline=0.3)
        last = deltas_of(generator, late)[-1].completion
        assert last is not None
        assert last.finish_reason == "deadline"

    def test_too_many_are_refused_at_once(self, start: Open) -> None:
        generator = start(pause=0.05, max_running=1, max_waiting=1)
        for id in "ab":
            generator.submit(request(id=id, max_tokens=200), lambda delta: None)
        with pytest.raises(EnvironmentProblem, match="2 requests are on their way"):
            generator.submit(request(id="c"), print)
        with pytest.raises(EnvironmentProblem, match="full"):
            generator.submit(request(id="a"), print)

    def test_a_listener_that_fails_takes_nobody_along(self, well: Open) -> None:
        generator = well()
        ended = threading.Event()

        def listen(delta: Delta) -> None:
            if delta.completion is not None:
                ended.set()
            raise RuntimeError("gone")

        generator.submit(request("a", id="bad", max_tokens=50), listen)
        assert deltas_of(generator, request())[-1].completion is not None
        assert ended.wait(30)

    def test_leaving_generate_early_cancels_the_rest(self, well: Open) -> None:
        generator = well()
        answers = generator.generate(request(id=f"r{number}", max_tokens=20) for number in range(30))
        next(answers)
        answers.close()
        wait_for(lambda: generator.stats()["running"] == 0.0)


class TestUrl:
    """Servers that run already."""

    def test_plain_openai_streams_text_and_counts(self, well: Open) -> None:
        process = well().place.process
        assert process is not None
        generator = GENERATORS.load("openai")(f"{process.url}/v1")
        try:
            assert (generator.model, generator.context) == ("fake", 64)
            found = deltas_of(generator, Request("c", [Message("user", "hi")], SamplingParams(max_tokens=4)))
            last = found[-1].completion
            assert last is not None
            assert (last.text, last.generated, last.token_ids) == ("7 8 9 7 ", 4, ())
            assert (last.finish_reason, last.prompt_tokens) == ("length", 3)
            assert not hasattr(generator, "codec")
            [scored] = generator.score([Request("s", "abc")])
            assert list(scored.logprobs) == pytest.approx([-0.5 - ord(one) / 1000 for one in "bc"])
            with pytest.raises(UsageError, match="the server does not take top_k"):
                generator.submit(Request("k", "a", SamplingParams(top_k=3)), print)
        finally:
            generator.close()

    def test_what_is_refused_for_now_is_sent_again(self, start: Open) -> None:
        process = start(fake="full").place.process
        assert process is not None
        generator: Generator = GENERATORS.load("openai")(f"{process.url}/v1", retries=5)
        try:
            [completion] = generator.generate([Request("c", "abc", SamplingParams(max_tokens=4))])
            assert completion.finish_reason == "length"
        finally:
            generator.close()

    def test_nobody_there_is_told(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
        generator = GENERATORS.load("openai")(url, retries=1)
        try:
            with pytest.raises(RemoteError, match=f"nobody answers at {url}"):
                list(generator.generate([Request("c", "abc")]))
        finally:
            generator.close()

    def test_without_a_url_it_is_asked_for(self, folder: Path) -> None:
        with pytest.raises(UsageError, match="URL is not known"):
            GENERATORS.load("openai")(folder)


def engine_pid(guard: int) -> int:
    """Return the process that a guard started."""
    [pid, *_] = Path(f"/proc/{guard}/task/{guard}/children").read_text().split()
    return int(pid)


def counts(generator: RemoteGenerator) -> dict[str, int]:
    """Ask the scripted engine what it counted."""
    assert generator.place.process is not None
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(generator.place.process.url + "/counts", timeout=30) as response:
        found: dict[str, int] = json.loads(response.read())
    return found


def wait_for(holds: Callable[[], Any], seconds: float = 30.0) -> None:
    """Wait until something holds, or raises."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)
