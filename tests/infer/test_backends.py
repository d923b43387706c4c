"""Engines of others: spoken to, their manners, and one that runs elsewhere. A scripted one stands in for them."""

from __future__ import annotations

import queue
import socket
import threading
from pathlib import Path
from typing import Any

import pytest

from catena.core.errors import EnvironmentProblem, RemoteError, UsageError
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

from .backends import NATIVE, PROMPT, Open, counts, deltas_of, folder, ids_of, program, request, start, wait_for, well

__all__ = ["folder", "program", "start", "well"]  # fixtures


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
