"""What training a model takes there: all weights by the planner, or an adapter on a frozen base."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from catena.core.registry import Registry
from catena.flow.advisor.need import Need, parse_budget
from catena.flow.advisor.reckon import Number, reckon
from catena.flow.advisor.serving import Machine
from catena.flow.advisor.tables import OpenModel

if TYPE_CHECKING:
    from catena.train.planner import Estimate
    from catena.train.planner_shape import Shape

# By name: this package runs without torch, and the planner stands beside the training.
PLANNERS = Registry(
    "planner",
    {
        "training": "catena.train.planner:plan_training",
        "estimate": "catena.train.planner:estimate",
        "config": "catena.train.planner:PlanConfig",
        "layout": "catena.train.planner:Layout",
        "shape": "catena.train.planner_shape:Shape",
    },
)
PLANNED_AS = {"modernbert": "llama", "t5": "gpt2", "mt5": "llama"}
"""Families that the planner does not know, and the one that has the same matrices in a layer."""
NF4_BITS = 4.127
"""Bits of a weight in nf4 with scales that are rounded once more (QLoRA, arXiv 2305.14314)."""
Way = Literal["full", "lora", "qlora"]
METHODS: dict[str, tuple[Way, ...]] = {
    "auto": ("full", "lora", "qlora"),
    "full": ("full",),
    "lora": ("lora",),
    "qlora": ("qlora",),
    "none": (),
}


@dataclass(frozen=True)
class Training:
    """One way to train a model there."""

    way: Way
    plan: str
    """How it is shared, in the planner's words: `zero1 x2`."""
    numbers: Sequence[Number]
    problems: Sequence[str]
    excess: float
    """As of a `Serving`."""

    def record(self) -> dict[str, Any]:
        """Return it with plain names."""
        numbers = {one.name: one.record() for one in self.numbers}
        return {"way": self.way, "plan": self.plan, "problems": list(self.problems), "numbers": numbers}


def shape_of_model(model: OpenModel) -> Shape:
    """Return the shape that the planner reckons with.

    An encoder-decoder is planned as a decoder of both halves' layers, whose attention has half as many heads again:
    so many parameters and products as attention to the encoder has.
    """
    both = model.kind == "encoder-decoder"
    key_value_heads = model.key_value_heads or model.heads
    shape: Shape = PLANNERS.load("shape")(
        family=PLANNED_AS.get(model.family, model.family),
        hidden=model.hidden,
        layers=model.layers * (2 if both else 1),
        feed_forward=model.feed_forward,
        heads=model.heads * 3 // 2 if both else model.heads,
        key_value_heads=key_value_heads * 3 // 2 if both else key_value_heads,
        head_dim=model.query_width // model.heads,
        vocabulary=model.vocabulary,
        positions=model.context if model.family in ("gpt2", "bert") else 0,
        tied=model.tied,
    )
    return shape


def trainings(model: OpenModel, machine: Machine, need: Need) -> list[Training]:
    """Return every way that is asked for, the most thorough first."""
    ways = METHODS[need.train]
    return [_full(model, machine, need) if way == "full" else _adapter(model, machine, need, way) for way in ways]


def _config(model: OpenModel, machine: Machine, need: Need) -> Any:
    """Return the planner's view of the machine and the step."""
    return PLANNERS.load("config")(
        gpus=machine.count,
        gpus_per_node=machine.count,
        memory=machine.gpu.memory,
        reserve=need.reserve,
        link=machine.gpu.link,
        tflops=machine.gpu.tflops,
        utilisation=need.compute_share,
        batch_size=machine.count * -(-need.batch_size // machine.count),
        sequence_length=min(need.sequence_length, model.context),
        precision="float32" if machine.gpu.half == "float32" else "bfloat16",
    )


def _full(model: OpenModel, machine: Machine, need: Need) -> Training:
    """Plan a training of all weights. What computes activations again is left out: no training stage does so yet."""
    planning = PLANNERS.load("training")(shape_of_model(model), _config(model, machine, need))
    plain: list[Estimate] = [one for one in planning.candidates if not one.layout.checkpointing]
    best = next((one for one in plain if one.fits), None) or min(plain, key=lambda one: one.memory)
    memory = reckon(
        "train_memory",
        "(weights + gradients + optimizer + activations + logits) / 1e9",
        "GB",
        weights=best.weights,
        gradients=best.gradients,
        optimizer=best.optimizer,
        activations=best.activations,
        logits=best.logits,
    )
    tokens = planning.config.batch_size * planning.config.sequence_length
    step = {"step_tokens": float(tokens), "step_seconds": best.seconds}
    rate = reckon("train_tokens_s", "step_tokens / step_seconds", "1/s", **step)
    return _training("full", best.layout.label(), (machine, need), [memory, rate])


def _adapter(model: OpenModel, machine: Machine, need: Need, way: Way) -> Training:
    """Plan LoRA: every process holds the base, frozen, and trains its own sequences."""
    shape, config = shape_of_model(model), _config(model, machine, need)
    layout = PLANNERS.load("layout")("ddp", machine.count)
    one: Estimate = PLANNERS.load("estimate")(shape, config, layout)
    bits = NF4_BITS if way == "qlora" else (32.0 if machine.gpu.half == "float32" else 16.0)
    halves = 2 if model.kind == "encoder-decoder" else 1
    attention = 2 * (model.hidden + model.query_width) + 2 * (model.hidden + model.cache_width)
    feed_forward = (3 if model.gated else 2) * (model.hidden + model.feed_forward)
    each = halves * (attention + feed_forward) + (attention if halves == 2 else 0)
    adapter = reckon("adapter", "rank * layers * widths", "", rank=need.rank, layers=model.layers, widths=each)
    memory = reckon(
        "train_memory",
        "(matrices * bits / 8 + (parameters - matrices) * rest_bits / 8 + 16 * adapter + activations + logits) / 1e9",
        "GB",
        matrices=model.matrices,
        bits=bits,
        parameters=model.parameters,
        rest_bits=32.0 if machine.gpu.half == "float32" else 16.0,
        adapter=adapter.value,
        activations=one.activations,
        logits=one.logits,
    )
    rate = reckon(
        "train_tokens_s",
        "gpus * tflops * 1e12 * compute_share / (4 * (matrices + output) + 6 * layers * sequence * query_width)",
        "1/s",
        gpus=machine.count,
        tflops=machine.gpu.tflops,
        compute_share=need.compute_share,
        matrices=model.matrices,
        output=model.head,
        layers=shape.layers,
        sequence=config.sequence_length,
        query_width=shape.query_width,
    )
    return _training(way, layout.label(), (machine, need), [adapter, memory, rate])


def _training(way: Way, plan: str, about: tuple[Machine, Need], numbers: list[Number]) -> Training:
    machine, need = about
    values = {one.name: one.value for one in numbers}
    hours = reckon(
        "train_hours",
        "train_tokens / train_tokens_s / 3600",
        "h",
        train_tokens=need.train_tokens,
        train_tokens_s=values["train_tokens_s"],
    )
    gpu_hours = reckon("train_gpu_hours", "gpus * train_hours", "h", gpus=machine.count, train_hours=hours.value)
    numbers += [hours, gpu_hours]
    problems: list[str] = []
    excess = 0.0
    room = machine.gpu.memory * (1 - need.reserve)
    if values["train_memory"] > room:
        problems.append(f"{way} training needs {values['train_memory']:.3g} GB a GPU of {room:.3g} GB")
        excess = values["train_memory"] / room
    if hours.value > need.train_hours:
        problems.append(f"{way} training takes {hours.value:.3g} hours, allowed are {need.train_hours:.3g}")
        excess = max(excess, hours.value / need.train_hours)
    if machine.gpu.watts:
        kwh = {"gpu_hours": gpu_hours.value, "watts": machine.gpu.watts}
        numbers.append(reckon("train_energy", "gpu_hours * watts / 1000", "kWh", **kwh))
    if need.price is not None:
        cost = reckon("train_cost", "gpu_hours * price", "", gpu_hours=gpu_hours.value, price=need.price)
        numbers.append(cost)
        amount, unit = parse_budget(need.budget) if need.budget else (0.0, "")
        if unit == "training" and cost.value > amount:
            problems.append(f"{way} training costs {cost.value:.4g}, the budget is {amount:.4g}")
            excess = max(excess, cost.value / amount)
    return Training(way, plan, numbers, problems, excess)
