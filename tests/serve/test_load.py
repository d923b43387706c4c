"""The load test against a real server, and its numbers."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from catena.core.errors import RemoteError, UsageError
from catena.serve.load import Call, LoadConfig, run_load, summary
from catena.serve.load_plot import draw


def test_every_request_of_a_level_is_answered_and_timed(url: str, tmp_path: Path) -> None:
    config = LoadConfig(
        model="tiny", requests=12, concurrency=(1, 6), max_tokens=6, ignore_end=True, rate=500, input_words=4
    )
    result = run_load(url, config)
    assert [level["concurrency"] for level in result["levels"]] == [1, 6]
    for level in result["levels"]:
        assert (level["completed"], level["failed"]) == (12, {})
        assert level["output_tokens_per_s"] == pytest.approx(6 * level["requests_per_s"], rel=0.01)
        assert level["goodput_per_s"] == level["requests_per_s"]
        for name in ("ttft_ms", "tpot_ms", "e2el_ms"):
            assert 0 <= level[name]["p50"] <= level[name]["p95"] <= level[name]["p99"]
    draw(result, tmp_path / "load.svg")
    assert "<svg" in (tmp_path / "load.svg").read_text()


def test_the_other_route_and_given_prompts(url: str) -> None:
    config = LoadConfig(model="tiny", requests=3, route="completions", prompts=("the", "what"), max_tokens=3)
    [level] = run_load(f"{url}/v1", config)["levels"]
    assert level["completed"] == 3


def test_what_is_refused_counts_as_failed(url: str) -> None:
    config = LoadConfig(model="tiny", requests=4, prompts=("the", "x" * 3000), max_tokens=3)
    [level] = run_load(url, config)["levels"]
    assert level["completed"] == 2
    assert level["failed"] == {"status 400": 2}


def test_a_server_that_answers_nothing_is_told(url: str) -> None:
    with pytest.raises(RemoteError, match="status 404"):
        run_load(url, LoadConfig(model="nobody", requests=2))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        with pytest.raises(RemoteError, match="no request was answered"):
            run_load(f"http://127.0.0.1:{free.getsockname()[1]}", LoadConfig(model="tiny", requests=2))
    with pytest.raises(UsageError, match="no address"):
        run_load("ftp://127.0.0.1", LoadConfig(model="tiny"))


def test_goodput_counts_who_kept_to_the_limits() -> None:
    quick = Call(0.0, [0.1, 0.2], tokens=2, ended=0.2)
    slow = Call(0.0, [0.9, 1.5], tokens=2, ended=1.5)
    lost = Call(0.0, error="timeout")
    told = summary([quick, slow, lost], LoadConfig(model="m", ttft_ms=500), 3, 2.0)
    assert (told["requests_per_s"], told["goodput_per_s"], told["failed"]) == (1.0, 0.5, {"timeout": 1})
    assert told["tpot_ms"]["p50"] == pytest.approx(350)
    assert summary([lost], LoadConfig(model="m"), 1, 1.0)["ttft_ms"] is None


def test_a_config_is_strict() -> None:
    with pytest.raises(ValueError, match="burstiness"):
        LoadConfig(model="m", burstiness=0)
