"""Engines of others as processes: started, watched and ended. A scripted one stands in for them."""

from __future__ import annotations

import os
import queue
import signal
import socket
import time
from pathlib import Path

import pytest

from catena.core.errors import EnvironmentProblem, PortInUse
from catena.core.generate import GENERATORS, Delta
from catena.infer.backends.remote import RemoteGenerator

from .backends import FAST, Open, deltas_of, engine_pid, folder, program, request, start, wait_for

__all__ = ["folder", "program", "start"]  # fixtures


def closed_in_the_middle(generator: RemoteGenerator) -> str:
    """Close an engine that has begun to answer; return how the answer ended."""
    told: queue.SimpleQueue[Delta] = queue.SimpleQueue()
    generator.submit(request(max_tokens=20), told.put)
    told.get(timeout=30)
    generator.close()
    *_, last = [told.get() for _ in range(told.qsize())]
    assert last.completion is not None
    return last.completion.finish_reason


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
        assert closed_in_the_middle(generator) == "length"
        assert not process.alive
        assert not process.log.exists()
        with pytest.raises(EnvironmentProblem, match="closed"):
            generator.submit(request(), print)
        generator.close()

    def test_closing_cancels_what_takes_too_long(self, start: Open) -> None:
        generator = start(fake="hang", drain_s=0.1)
        assert closed_in_the_middle(generator) == "cancelled"

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
