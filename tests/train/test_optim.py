"""Facts about schedules and weight decay."""

import pytest

from catena.models.presets import build
from catena.train.optim import learning_rate, make_optimizer
from catena.train.settings import TrainConfig


def test_cosine_rises_in_the_warmup_and_ends_at_the_final_rate() -> None:
    config = TrainConfig(learning_rate=1.0, warmup_steps=10, final_rate=0.1, schedule="cosine")
    rates = [learning_rate(step, 100, config) for step in range(100)]
    assert rates[0] < rates[5] < rates[9]
    assert rates[9] == max(rates)
    assert rates[-1] == pytest.approx(0.1)
    assert rates[9:] == sorted(rates[9:], reverse=True)


def test_wsd_is_level_then_falls_in_a_line() -> None:
    config = TrainConfig(learning_rate=1.0, warmup_steps=0, final_rate=0.0, schedule="wsd", decay_share=0.5)
    assert [learning_rate(step, 8, config) for step in range(8)] == pytest.approx([1, 1, 1, 1, 0.75, 0.5, 0.25, 0])


def test_constant_stays_and_a_phase_may_have_its_own_height() -> None:
    config = TrainConfig(learning_rate=0.5, warmup_steps=0, schedule="constant")
    assert learning_rate(7, 8, config) == 0.5
    assert learning_rate(7, 8, config, peak=0.25) == 0.25


def test_norms_and_embeddings_have_no_weight_decay() -> None:
    model = build("llama-nano", 300, 0)
    optimizer = make_optimizer(model, TrainConfig(weight_decay=0.1))
    decayed, kept = optimizer.param_groups
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert all("proj" in names[id(parameter)] for parameter in decayed["params"])
    assert {names[id(parameter)].split(".")[-2] for parameter in kept["params"]} == {
        "embed_tokens",
        "norm",
        "input_layernorm",
        "post_attention_layernorm",
    }
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.1, 0.0)
