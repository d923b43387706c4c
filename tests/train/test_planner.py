"""Facts about the planner: it counts parameters exactly, estimates what is measured, and picks by the rule."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from catena.core.errors import DataError, NotFound, UsageError
from catena.core.types import ModelVersion
from catena.hub.store import Store
from catena.models import checkpoint
from catena.models.families import FAMILIES, Words
from catena.models.presets import build, preset, presets
from catena.models.tokenizer import train_tokenizer
from catena.train.parallel.contract import sizes_of
from catena.train.parallel.settings import ParallelConfig
from catena.train.planner import Layout, PlanConfig, Planning, estimate, layouts, plan, plan_training
from catena.train.planner_shape import shape_of, shape_of_settings
from tests.train.conftest import Recorded

PLANNED = [name for name, shape in presets().items() if shape.family in ("llama", "qwen3", "gpt2", "bert")]


def planned(model: str, **values: Any) -> Planning:
    return plan_training(shape_of(model), PlanConfig(**values))


@pytest.mark.parametrize("name", [*(name for name in PLANNED if "nano" in name), "llama-8b", "qwen3-0.6b", "gpt2-124m"])
def test_parameters_are_those_of_the_model(name: str) -> None:
    numbers = preset(name)
    family = FAMILIES[numbers.family]
    with torch.device("meta"):
        model = family.model(family.config(numbers, Words(numbers.vocabulary, 0, 1, numbers.context)))
    wanted = sum(parameter.numel() for parameter in model.parameters())
    assert shape_of(name).parameters == wanted
    assert shape_of_settings(model.config.to_dict()).parameters == wanted


def saved_bytes(model: Any, ids: torch.Tensor, half: bool) -> int:
    """Count the storages that autograd keeps of a forward pass, weights and their copies left out."""
    kept: dict[int, Any] = {}
    sizes = {parameter.numel() for parameter in model.parameters()}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.numel() not in sizes:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model.bert
    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16, enabled=half):
        decoder(input_ids=ids)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("name", ["llama-nano", "qwen3-nano", "gpt2-nano", "bert-nano", "llama-1m"])
def test_activations_are_what_autograd_keeps(name: str, half: bool) -> None:
    model = build(name, 512, 0)
    ids = torch.zeros(3, 96, dtype=torch.long)
    precision: Any = "bfloat16" if half else "float32"
    config = PlanConfig(gpus=1, batch_size=3, sequence_length=96, precision=precision)
    found = estimate(shape_of(name), config, Layout("ddp", 1, micro_batch=3)).activations
    assert found == pytest.approx(saved_bytes(model, ids, half), rel=0.25)


@pytest.mark.parametrize("name", ["llama-nano", "gpt2-nano"])
def test_weights_gradients_and_state_are_what_a_step_leaves(name: str) -> None:
    model = build(name, preset(name).vocabulary, 0)
    optimizer = torch.optim.AdamW(model.parameters())
    model(input_ids=torch.zeros(1, 8, dtype=torch.long)).logits.sum().backward()
    optimizer.step()
    held = sum(item.nbytes + item.grad.nbytes for item in model.parameters())
    state = sum(item.nbytes for found in optimizer.state.values() for item in found.values())
    guess = estimate(shape_of(name), PlanConfig(gpus=1), Layout("ddp", 1))
    assert guess.weights + guess.gradients == held
    assert guess.optimizer == pytest.approx(state, rel=0.01)


def test_sharing_divides_what_it_says() -> None:
    shape, config = shape_of("llama-1b"), PlanConfig(gpus=8)
    ddp, one, two, three = (estimate(shape, config, Layout(kind, 8)) for kind in ("ddp", "zero1", "zero2", "zero3"))
    assert (one.optimizer, one.gradients, one.weights) == (ddp.optimizer / 8, ddp.gradients, ddp.weights)
    assert (two.optimizer, two.gradients, two.weights) == (ddp.optimizer / 8, ddp.gradients / 8, ddp.weights)
    assert ddp.weights / 8 < three.weights < ddp.weights / 4
    assert ddp.traffic["data"] == one.traffic["data"] == 2 * 7 / 8 * 4 * shape.parameters
    halves = estimate(shape, config, Layout("ddp", 4, tensor=2))
    assert halves.weights == ddp.weights / 2
    assert estimate(shape, config, Layout("ddp", 8, checkpointing=True)).activations < ddp.activations / 7


def test_one_micro_batch_sends_two_and_three_times_the_parameters() -> None:
    shape, config = shape_of("llama-1b"), PlanConfig(gpus=8, batch_size=8)
    unit = 7 / 8 * 4 * shape.parameters
    sent = [estimate(shape, config, Layout(kind, 8)).traffic["data"] / unit for kind in ("ddp", "zero2", "zero3")]
    assert sent == pytest.approx([2, 2, 3])


def test_what_fits_is_shared_by_zero1_or_zero2() -> None:
    small = planned("llama-1b", gpus=8)
    assert small.picked is not None
    assert small.picked.layout.data == "zero1"
    assert "fits with zero1" in small.why
    assert small.candidates[0] is small.picked
    large = planned("llama-8b", gpus=8)
    assert large.picked is not None
    assert (large.picked.layout.data, large.picked.layout.products) == ("zero2", 1)


def test_a_slow_link_asks_for_zero3_and_a_fast_one_for_tensor_parallelism() -> None:
    slow = planned("llama-32b", gpus=32, link=50)
    assert slow.picked is not None
    assert (slow.picked.layout.data, slow.picked.layout.tensor) == ("zero3", 1)
    assert "too slow for tensor parallelism" in slow.why
    fast = planned("llama-32b", gpus=32, link=50, node_link=450)
    assert fast.picked is not None
    assert 1 < fast.picked.layout.tensor <= 8
    assert "is fast" in fast.why


def test_one_gpu_needs_no_sharing() -> None:
    one = planned("llama-110m", gpus=1, batch_size=4, sequence_length=512)
    assert one.picked is not None
    assert (one.picked.layout.data, one.picked.traffic["data"]) == ("ddp", 0)


def test_what_fits_nowhere_is_said_with_the_smallest_need() -> None:
    none = planned("llama-70b", gpus=8)
    assert none.picked is None
    assert none.why.startswith("Nothing fits: the smallest")
    assert not any(item.fits for item in none.candidates)


def test_layouts_divide_gpus_heads_layers_and_batch() -> None:
    shape, config = shape_of("llama-3b"), PlanConfig(gpus=24, gpus_per_node=4, batch_size=48, sequence_length=1000)
    found = list(layouts(shape, config))
    assert all(item.replicas * item.products == 24 for item in found)
    assert {item.tensor for item in found} == {1, 2, 4}  # 3 does not divide 8 key heads
    assert {item.pipeline for item in found} == {1, 2, 4}  # of 28 layers
    assert not {item.context for item in found} & {3, 6}


@pytest.mark.parametrize("model", ["llama-1b", "llama-8b", "llama-70b"])
def test_whatever_is_told_can_be_trained_so(model: str) -> None:
    shape = shape_of(model)
    for gpus in (8, 64):
        for layout in layouts(shape, PlanConfig(gpus=gpus)):
            sizes = {name: getattr(layout, name) for name in ("data", "tensor", "pipeline", "context")}
            assert sizes_of(ParallelConfig(**sizes), gpus)[1] == layout.replicas
            assert layout.data == "ddp" or layout.replicas > 1


def test_unknown_models_and_values_are_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no preset and no folder 'llama-9b'") as caught:
        shape_of("llama-9b")
    assert "llama-8b" in caught.value.hint
    with pytest.raises(UsageError, match="t5 model costs is not known"):
        shape_of("t5-nano")
    with pytest.raises(DataError, match=r"no config\.json"):
        shape_of(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(DataError, match="does not say the model's sizes"):
        shape_of(str(tmp_path))
    with pytest.raises(ValidationError):
        PlanConfig(gpus=0)


def test_the_stage_reports_a_plan_of_a_stored_model(
    store: Store, recorded: Callable[[str], Recorded], tmp_path: Path
) -> None:
    checkpoint.save(build("llama-nano", 512, 0), train_tokenizer(["a b c"], 300), tmp_path / "m")
    model: ModelVersion = store.put_model(tmp_path / "m", **checkpoint.describe(tmp_path / "m"))
    report = plan(recorded("plan").context, PlanConfig(gpus=4, batch_size=8, sequence_length=64), model=model)
    assert (report.subject, report.suite) == (model.digest, "plan")
    assert set(report.scores) == {"memory", "traffic", "step"}
    assert report.details["fits"]
    assert report.details["candidates"][0]["layout"]["data"] == "zero1"
