"""What a model's measurement counts, on a tiny one. Times are not asserted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from catena.core.errors import ConfigError, UsageError
from catena.infer import bench
from catena.models.checkpoint import save

from .architectures import build


@pytest.fixture
def calm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not measure the machine, and try once."""
    monkeypatch.setattr(bench, "read_bandwidth", lambda: 10.0)
    monkeypatch.setattr(bench, "gemm", lambda *_: 100.0)
    monkeypatch.setattr(bench, "TRIES", 1)


def test_a_folder_is_measured_at_every_batch_size(calm: None, tokenizer: Any, model_of: Any, tmp_path: Path) -> None:
    save(model_of("qwen3"), tokenizer, tmp_path / "model")
    told = bench.bench_folder(tmp_path / "model", batch_sizes=[1, 3], prompt_tokens=5, new_tokens=3)
    assert (told["format"], told["paged"], told["config"]["device"]) == ("float32", True, "cpu")
    assert [row["batch_size"] for row in told["rows"]] == [1, 3]
    for row in told["rows"]:
        assert row["decode_tokens_per_s"] > 0
        assert row["bandwidth_gb_per_s"] == 10
        assert row["decode_share"] == pytest.approx(row["read_gb_per_s"] / 10, abs=0.01)
    rounded = bench.bench_folder(tmp_path / "model", prompt_tokens=5, new_tokens=3, precision="int8")
    assert rounded["weights_bytes"] < 0.5 * told["weights_bytes"]


def test_weights_that_a_step_reads_are_counted_once() -> None:
    model = build("llama")
    head = model.lm_head.weight.numel() * 4
    everything = sum(parameter.numel() for parameter in model.parameters()) * 4
    looked_up = model.get_input_embeddings().weight.numel() * 4
    assert bench.weight_bytes(model) == pytest.approx(everything - looked_up, rel=0.02)
    assert bench.linear_weights(model) * 4 >= head


@pytest.mark.parametrize(
    ("given", "context", "lengths"),
    [
        ({}, 2048, (128, 32)),
        ({}, 160, (128, 32)),
        ({}, 128, (103, 25)),
        ({}, 64, (52, 12)),
        ({}, 8, (6, 2)),
        ({"prompt_tokens": 60}, 64, (60, 4)),
        ({"new_tokens": 40}, 64, (24, 40)),
        ({"prompt_tokens": 60, "new_tokens": 4}, 64, (60, 4)),
    ],
)
def test_lengths_fit_the_context(given: dict[str, int], context: int, lengths: tuple[int, int]) -> None:
    assert bench.lengths_for(bench.BenchConfig(**given), context) == lengths


def test_what_is_longer_than_the_context_is_refused() -> None:
    for given in ({"prompt_tokens": 64}, {"new_tokens": 64}, {"prompt_tokens": 60, "new_tokens": 5}):
        with pytest.raises(UsageError, match="the context is 64 tokens"):
            bench.lengths_for(bench.BenchConfig(**given), 64)


def test_what_cannot_be_measured_is_refused(calm: None, tokenizer: Any, model_of: Any, tmp_path: Path) -> None:
    save(model_of(), tokenizer, tmp_path / "model")
    with pytest.raises(UsageError, match="context is 256"):
        bench.bench_folder(tmp_path / "model", prompt_tokens=250, new_tokens=20)
    with pytest.raises(UsageError, match="no device"):
        bench.bench_folder(tmp_path / "model", device="cuda:9")
    with pytest.raises(ConfigError, match="precision"):
        bench.bench_folder(tmp_path / "model", precision="int3")
