"""Facts about schedules, weight decay, and the optimizers by name."""

from typing import Any

import pytest
import torch

from catena.models.presets import build
from catena.train.optim import begin, learning_rate, make_optimizer
from catena.train.parallel.strategy import Strategy
from catena.train.settings import OptimizerName, TrainConfig

NAMES = ["adamw", "sgd", "lion", "muon", "adafactor"]


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


def learn(model: Any, optimizer: torch.optim.Optimizer, steps: int, rate: float = 3e-3) -> list[float]:
    """Fit one sequence; returns the losses."""
    ids = torch.arange(5, 37)[None]
    losses = []
    for _ in range(steps):
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("name", NAMES)
def test_every_optimizer_learns(name: OptimizerName) -> None:
    model = build("llama-nano", 300, 0)
    rate = {"sgd": 0.3, "lion": 1e-3, "adafactor": 1e-2}.get(name, 3e-3)
    losses = learn(model, make_optimizer(model, TrainConfig(optimizer=name)), 12, rate)
    assert losses[-1] < losses[0] - 0.5


@pytest.mark.parametrize("name", NAMES)
def test_states_made_beforehand_change_nothing(name: OptimizerName) -> None:
    one, other = build("llama-nano", 300, 0), build("llama-nano", 300, 0)
    before = [parameter.detach().clone() for parameter in other.parameters()]
    prepared = make_optimizer(other, TrainConfig(optimizer=name))
    begin(prepared)
    assert all(torch.equal(a, b) for a, b in zip(before, other.parameters(), strict=True))
    assert all(parameter.grad is None for parameter in other.parameters())
    assert learn(one, make_optimizer(one, TrainConfig(optimizer=name)), 4) == learn(other, prepared, 4)


@pytest.mark.parametrize("name", NAMES)
def test_pieces_of_every_optimizer_hold_all_of_its_state(name: OptimizerName) -> None:
    config = TrainConfig(optimizer=name)
    strategy = Strategy(config, torch.device("cpu"))
    model = build("llama-nano", 300, 0)
    optimizer = make_optimizer(model, config)
    learn(model, optimizer, 3)
    copy = build("llama-nano", 300, 1)
    fresh = make_optimizer(copy, config)
    held = {piece.name: piece.tensor for piece in strategy.pieces(model, optimizer)}
    for piece in strategy.pieces(copy, fresh):
        piece.tensor.copy_(held.pop(piece.name))
    assert not held
    assert learn(model, optimizer, 3) == learn(copy, fresh, 3)


def test_muon_steps_the_matrices_inside_the_layers_and_adamw_the_rest() -> None:
    model = build("llama-nano", 300, 0)
    optimizer = make_optimizer(model, TrainConfig(optimizer="muon"))
    begin(optimizer)
    kinds = {name: set(optimizer.state[parameter]) for name, parameter in model.named_parameters()}
    muon = {name for name, state in kinds.items() if state == {"momentum_buffer"}}
    assert muon == {name for name in kinds if "proj" in name}
    assert kinds["model.embed_tokens.weight"] == {"step", "exp_avg", "exp_avg_sq"}


def test_lion_moves_each_weight_by_the_rate_in_the_direction_of_its_momentum() -> None:
    weight = torch.nn.Parameter(torch.tensor([[1.0, -1.0, 0.5]]))
    optimizer = make_optimizer(torch.nn.ParameterList([weight]), TrainConfig(optimizer="lion", weight_decay=0.0))
    weight.grad = torch.tensor([[0.1, -30.0, 0.0]])
    for group in optimizer.param_groups:
        group["lr"] = 0.25
    optimizer.step()
    assert torch.allclose(weight.detach(), torch.tensor([[0.75, -0.75, 0.5]]))


def test_optimizer_of_a_part_of_the_weights_holds_no_more() -> None:
    model = build("llama-nano", 300, 0)
    chosen = list(model.parameters())[:3]
    optimizer = make_optimizer(model, TrainConfig(), chosen)
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert {id(parameter) for parameter in held} == {id(parameter) for parameter in chosen}
