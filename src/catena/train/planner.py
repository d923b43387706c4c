"""The planner: what each way to share a training among GPUs costs in memory, traffic and time, and which one to take.

    PlanConfig + Shape -> candidates -> Estimate of each -> the one that the rule picks, and why

The rule: where the model fits with what data-parallel processes share cheaply (ZeRO-1, 2), they do. Where not, a slow
link asks for ZeRO-3, which sends weights and not activations, and a fast one for tensor parallelism inside a node. All
formulas are in `FORMULAS`, in the names of the fields below; arXiv 1910.02054 (ZeRO), 2104.04473 (pipelines),
2205.05198 (activations). Pure and free of torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from pydantic import Field

from catena.core.config import Config, parse
from catena.core.errors import ConfigError
from catena.core.stage import Context, stage
from catena.core.types import ModelVersion, Report, Score
from catena.train.parallel.contract import sizes_of
from catena.train.parallel.settings import ParallelConfig
from catena.train.planner_shape import Shape, shape_of, shape_of_settings

Sharing = Literal["ddp", "zero1", "zero2", "zero3"]
SHARINGS: tuple[Sharing, ...] = ("zero1", "zero2", "ddp", "zero3")
"""In the order that is preferred where two are as fast."""
STATE_BYTES = {"adamw": 8, "lion": 4, "sgd": 4, "muon": 4, "adafactor": 0}
GIGA = 1e9
FAST_LINK = 100.0
"""GB/s from which tensor parallelism pays, whose traffic stands in the way of every layer."""
LOGITS_AT_ONCE = 50_000_000
"""Logits above which the loss is computed in pieces (catena.train.objectives)."""
LOGITS_PIECE = 12_500_000
LAYERS_GATHERED = 2
"""Layers whose weights ZeRO-3 holds whole: the one at work, and the next, which is on its way."""

FORMULAS: dict[str, str] = {
    "held parameters": "layer parameters x layers / (tensor x pipeline) + the larger end (embedding or head) / tensor",
    "weights": "4 bytes x held; zero3: / shards, and 2 layers whole",
    "gradients": "4 bytes x held; zero2, zero3: / shards",
    "optimizer": "adamw 8, lion, sgd and muon 4 bytes x held; zero1, zero2, zero3: / shards",
    "activations": "tokens of a micro-batch x bytes kept by a layer x layers of a stage x micro-batches in flight; "
    "with checkpointing 4 x hidden for each layer and one layer whole",
    "logits": "12 bytes (bfloat16: 16) x tokens x vocabulary / tensor, at most a piece of 12.5 million at once",
    "shards": "data x context processes; f(n) = (n - 1) / n is what a ring sends of what it shares",
    "data traffic": "ddp, zero1: 2 f x gradients; zero2: f x (micro-batches x gradients + weights); "
    "zero3: f x micro-batches x (2 x weights + gradients)",
    "tensor traffic": "layers x micro-batches x 4 all-reduces (checkpointing: 6) x 2 f x tokens x hidden x 2 or 4 "
    "bytes",
    "context traffic": "layers x micro-batches x 2 x (context - 1) x keys and values of the own tokens",
    "pipeline traffic": "micro-batches x 2 x tokens x hidden x 2 or 4 bytes",
    "compute": "(6 x matrix parameters + 6 x layers x sequence x query width) x tokens / (gpus x peak x utilisation); "
    "checkpointing: x 4/3; pipeline: x (1 + (pipeline - 1) / micro-batches)",
    "time": "compute + tensor + context + pipeline + what of the data traffic the backward pass (2/3) does not hide",
}


class PlanConfig(Config):
    """The machine, and the step that is to be planned. GB are 10^9 bytes."""

    gpus: int = Field(default=8, ge=1, le=65_536)
    """GPUs altogether."""
    gpus_per_node: int = Field(default=8, ge=1)
    """GPUs in one machine; tensor parallelism stays inside it."""
    memory: float = Field(default=80.0, gt=0)
    """Memory of one GPU, in GB."""
    reserve: float = Field(default=0.08, ge=0, lt=1)
    """Share of the memory that is left for the allocator and the driver."""
    link: float = Field(default=64.0, gt=0)
    """Speed at which one GPU sends to another machine's, in GB/s; with one machine, to any other."""
    node_link: float | None = Field(default=None, gt=0)
    """Speed at which one GPU sends to another of its own machine, in GB/s; default: `link`."""
    tflops: float = Field(default=989.0, gt=0)
    """Peak of one GPU in the precision below, in 10^12 operations a second (989: bfloat16 on an H100)."""
    utilisation: float = Field(default=0.4, gt=0, le=1)
    """Share of the peak that is reached while a GPU computes."""
    batch_size: int = Field(default=256, ge=1)
    """Sequences in one optimizer step, over all GPUs."""
    sequence_length: int = Field(default=4096, ge=1)
    """Tokens in a sequence."""
    precision: Literal["bfloat16", "float32"] = "bfloat16"
    """Number format of matrix products; weights, gradients and state are float32."""
    optimizer: Literal["adamw", "sgd", "lion", "muon", "adafactor"] = "adamw"
    """Decides how much state there is."""

    @property
    def inside(self) -> float:
        """GB/s between two GPUs of one machine."""
        return self.node_link or self.link

    @property
    def room(self) -> float:
        """Bytes that a training may take on one GPU."""
        return self.memory * GIGA * (1 - self.reserve)


@dataclass(frozen=True, slots=True)
class Layout:
    """One way to share a training. Names as in `ParallelConfig`."""

    data: Sharing
    replicas: int
    """Data-parallel processes."""
    tensor: int = 1
    pipeline: int = 1
    context: int = 1
    micro_batch: int = 1
    checkpointing: bool = False
    """A layer's activations are computed again in the backward pass."""

    @property
    def shards(self) -> int:
        """Processes over which ZeRO shares."""
        return self.replicas * self.context

    @property
    def products(self) -> int:
        """Processes that share one copy of the model in other ways than ZeRO's."""
        return self.tensor * self.pipeline * self.context

    def label(self) -> str:
        """Return it in a few words."""
        sizes = {"tp": self.tensor, "pp": self.pipeline, "cp": self.context}
        parts = [f"{self.data} x{self.replicas}"] + [f"{name}{size}" for name, size in sizes.items() if size > 1]
        return " ".join(parts)


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a layout costs each GPU: bytes held, bytes sent in an optimizer step, seconds of one."""

    layout: Layout
    weights: float
    gradients: float
    optimizer: float
    activations: float
    logits: float
    traffic: dict[str, float]
    """Bytes sent: `data`, `tensor`, `context`, `pipeline`."""
    compute_seconds: float
    link_seconds: float
    """Of the traffic that nothing hides."""
    fits: bool

    @property
    def memory(self) -> float:
        """Bytes held altogether."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.logits

    @property
    def seconds(self) -> float:
        """Of one optimizer step."""
        return self.compute_seconds + self.link_seconds

    def record(self) -> dict[str, Any]:
        """Return all numbers with plain names."""
        sums = {"memory": self.memory, "traffic_bytes": sum(self.traffic.values()), "seconds": self.seconds}
        return {**asdict(self), "label": self.layout.label(), **sums}


@dataclass(frozen=True, slots=True)
class Planning:
    """Every candidate, the best first, and what was picked; `picked` is None where nothing fits."""

    shape: Shape
    config: PlanConfig
    candidates: tuple[Estimate, ...]
    picked: Estimate | None
    why: str
    formulas: Mapping[str, str] = field(default_factory=lambda: FORMULAS)


def plan_named(model: str, values: Mapping[str, Any], vocabulary: int | None = None) -> Planning:
    """Plan for a preset or a model's folder; `values` are those of a `PlanConfig`. What the command line calls."""
    return plan_training(shape_of(model, vocabulary), parse(PlanConfig, values))


def plan_training(shape: Shape, config: PlanConfig) -> Planning:
    """Estimate every candidate and pick one by the rule."""
    found = sorted(_candidates(shape, config), key=_preference)
    picked, why = _pick(found, config)
    order = [picked, *(item for item in found if item is not picked)] if picked else found
    return Planning(shape, config, tuple(order), picked, why)


def _preference(estimate: Estimate) -> tuple[Any, ...]:
    layout = estimate.layout
    # Times that differ by less than one in a hundred say nothing: then the simpler layout stands first.
    time = float(f"{estimate.seconds:.2g}") if estimate.fits else estimate.memory
    return (not estimate.fits, time, layout.products, SHARINGS.index(layout.data), -layout.micro_batch)


def layouts(shape: Shape, config: PlanConfig) -> Iterator[Layout]:
    """Yield every product of the number of GPUs that the model and the batch can be divided by."""
    for tensor in _divisors(config.gpus):
        if tensor > config.gpus_per_node or shape.heads % tensor or shape.key_value_heads % tensor:
            continue
        for pipeline in _divisors(config.gpus // tensor):
            if shape.layers % pipeline:
                continue
            for context in _divisors(config.gpus // tensor // pipeline):
                replicas = config.gpus // tensor // pipeline // context
                if config.sequence_length % context or config.batch_size % replicas:
                    continue
                for data in ("ddp",) if replicas == 1 else SHARINGS:
                    if _offered(data, replicas, tensor, pipeline, context):
                        yield Layout(data, replicas, tensor, pipeline, context)


def _offered(data: Sharing, replicas: int, tensor: int, pipeline: int, context: int) -> bool:
    """Whether the training does it: only plans that can be followed are told."""
    shared = ParallelConfig(data=data, tensor=tensor, pipeline=pipeline, context=context)
    try:
        sizes_of(shared, replicas * tensor * pipeline * context)
    except ConfigError:
        return False
    return True


def _divisors(number: int) -> list[int]:
    return [size for size in range(1, number + 1) if number % size == 0]


def _candidates(shape: Shape, config: PlanConfig) -> Iterator[Estimate]:
    """Yield each layout with and without checkpointing, with the largest micro-batch that fits."""
    for layout in layouts(shape, config):
        sizes = [size for size in _divisors(config.batch_size // layout.replicas) if size & (size - 1) == 0]
        for checkpointing in (False, True):
            best: Estimate | None = None
            for size in sizes:
                one = estimate(shape, config, _with(layout, size, checkpointing))
                if best is None or (one.fits and one.seconds <= best.seconds):
                    best = one
                if not one.fits:
                    break
            if best is not None:
                yield best


def _with(layout: Layout, size: int, checkpointing: bool) -> Layout:
    return Layout(layout.data, layout.replicas, layout.tensor, layout.pipeline, layout.context, size, checkpointing)


def estimate(shape: Shape, config: PlanConfig, layout: Layout) -> Estimate:
    """Return what one layout costs; see `FORMULAS`."""
    ends = max(shape.embedding, shape.head + (shape.vocabulary * shape.hidden if shape.tied else 0))
    whole = layout.pipeline == 1
    outside = shape.embedding + shape.head if whole else ends
    held = (shape.layer_parameters * shape.layers / layout.pipeline + outside) / layout.tensor
    shared = {name: layout.shards if layout.data in names else 1 for name, names in _SHARED.items()}
    gathered = LAYERS_GATHERED * shape.layer_parameters / layout.tensor if layout.data == "zero3" else 0.0
    weights = 4 * (held / shared["weights"] + gathered * (layout.shards > 1))
    activations, logits = _activations(shape, config, layout)
    traffic = _traffic(shape, config, layout, held)
    compute = _compute_seconds(shape, config, layout)
    gradients = 4 * held / shared["gradients"]
    optimizer = STATE_BYTES[config.optimizer] * held / shared["optimizer"]
    return Estimate(
        layout=layout,
        weights=weights,
        gradients=gradients,
        optimizer=optimizer,
        activations=activations,
        logits=logits,
        traffic=traffic,
        compute_seconds=compute,
        link_seconds=_link_seconds(config, layout, traffic, compute),
        fits=weights + gradients + optimizer + activations + logits <= config.room,
    )


_SHARED: dict[str, tuple[Sharing, ...]] = {
    "weights": ("zero3",),
    "gradients": ("zero2", "zero3"),
    "optimizer": ("zero1", "zero2", "zero3"),
}


def _micro_batches(config: PlanConfig, layout: Layout) -> int:
    return -(-config.batch_size // (layout.replicas * layout.micro_batch))


def _activations(shape: Shape, config: PlanConfig, layout: Layout) -> tuple[float, float]:
    """Return the bytes of activations and of logits at the worst moment."""
    half = config.precision == "bfloat16"
    tokens = layout.micro_batch * config.sequence_length / layout.context
    layer = shape.kept(half=half, shares=layout.tensor)
    flying = min(layout.pipeline, _micro_batches(config, layout))
    layers = shape.layers / layout.pipeline * flying
    kept = 4 * shape.hidden * layers + layer if layout.checkpointing else layer * layers
    count = tokens * shape.vocabulary / layout.tensor
    pieces = count > LOGITS_AT_ONCE
    logits = (16 if half else 12) * (LOGITS_PIECE if pieces else count)
    # In pieces the gradients of the head and of the hidden states are made on the way.
    extra = 4 * shape.hidden * (shape.vocabulary / layout.tensor + tokens) if pieces else 0.0
    return tokens * (kept + 8 * shape.hidden), logits + extra


def _traffic(shape: Shape, config: PlanConfig, layout: Layout, held: float) -> dict[str, float]:
    """Return the bytes that a GPU sends in one optimizer step, by what for."""
    count = _micro_batches(config, layout)
    width = 2 if config.precision == "bfloat16" else 4
    tokens = layout.micro_batch * config.sequence_length / layout.context
    layers = shape.layers / layout.pipeline
    times = {"ddp": 2.0, "zero1": 2.0, "zero2": count + 1.0, "zero3": 3.0 * count}[layout.data]
    reduces = 6 if layout.checkpointing else 4
    keys = 2 * shape.key_value_width / layout.tensor * tokens * width
    return {
        "data": _ring(layout.shards) * times * 4 * held,
        "tensor": layers * count * reduces * 2 * _ring(layout.tensor) * tokens * shape.hidden * width,
        "context": layers * count * 2 * (layout.context - 1) * keys,
        "pipeline": count * 2 * tokens * shape.hidden * width if layout.pipeline > 1 else 0.0,
    }


def _ring(size: int) -> float:
    return (size - 1) / size


def _compute_seconds(shape: Shape, config: PlanConfig, layout: Layout) -> float:
    tokens = config.batch_size * config.sequence_length
    seconds = shape.flops(config.sequence_length) * tokens / (config.gpus * config.tflops * 1e12 * config.utilisation)
    bubble = 1 + (layout.pipeline - 1) / _micro_batches(config, layout)
    return seconds * (4 / 3 if layout.checkpointing else 1) * bubble


def _link_seconds(config: PlanConfig, layout: Layout, traffic: dict[str, float], compute: float) -> float:
    """Return the seconds of traffic that nothing hides. Neighbours sit in one machine: tensor, then context."""
    size, seconds = 1, 0.0
    for kind, ranks in (("tensor", layout.tensor), ("context", layout.context), ("pipeline", layout.pipeline)):
        size *= ranks
        seconds += traffic[kind] / GIGA / (config.inside if size <= config.gpus_per_node else config.link)
    data = traffic["data"] / GIGA / (config.inside if config.gpus <= config.gpus_per_node else config.link)
    return seconds + max(0.0, data - compute * 2 / 3)


def _pick(found: list[Estimate], config: PlanConfig) -> tuple[Estimate | None, str]:
    """Return what the rule picks of candidates in order of preference, and the reason as a sentence."""
    fitting = [item for item in found if item.fits]
    room = f"{config.room / GIGA:.0f} GB"
    if not fitting:
        least = min(found, key=lambda item: item.memory)
        smallest = f"the smallest, {least.layout.label()}, needs {least.memory / GIGA:.1f} GB of {room}"
        return None, f"Nothing fits: {smallest}. More GPUs, shorter sequences or a smaller batch would help."
    plain = [item for item in found if item.layout.products == 1]
    cheap = [item for item in plain if item.fits and item.layout.data != "zero3"]
    if cheap:
        taken = f"{cheap[0].memory / GIGA:.1f} GB of {room}"
        if config.gpus == 1:
            return cheap[0], f"One GPU holds it all: {taken}."
        return cheap[0], f"It fits with {cheap[0].layout.data}: {taken}.{_faster(cheap[0], fitting[0])}"
    need = min((item.memory for item in plain if item.layout.data != "zero3"), default=0.0) / GIGA
    start = f"Plain data parallelism needs {need:.1f} GB of {room}"
    if not plain:
        start = f"A batch of {config.batch_size} sequences cannot be shared by {config.gpus} data-parallel processes"
    elif not need:
        start = f"One GPU has {room}"
    sharded = [item for item in plain if item.fits and item.layout.data == "zero3"]
    split = [item for item in fitting if item.layout.products == item.layout.tensor > 1]
    speed = config.inside
    if speed < FAST_LINK and sharded:
        return sharded[
            0
        ], f"{start}; the link inside a node ({speed:.0f} GB/s) is too slow for tensor parallelism: ZeRO-3."
    if speed >= FAST_LINK and split:
        return split[0], f"{start}; the link inside a node ({speed:.0f} GB/s) is fast: tensor parallelism."
    return fitting[0], f"{start}; {fitting[0].layout.label()} is the fastest that fits."


def _faster(picked: Estimate, first: Estimate) -> str:
    """Say which layout is clearly faster than the one that the rule picks, if one is."""
    if first.seconds > 0.95 * picked.seconds:
        return ""
    return f" {first.layout.label()} would take {first.seconds:.3g} s a step instead of {picked.seconds:.3g}."


@stage("train.plan")
def plan(ctx: Context, cfg: PlanConfig, *, model: ModelVersion) -> Report:
    """Say how a training of a stored model is best shared among GPUs, and what that costs."""
    from catena.models.checkpoint import read_config

    planning = plan_training(shape_of_settings(read_config(ctx.store.checkout(model))), cfg)
    best = planning.picked or planning.candidates[0]
    scores = {
        "memory": Score(value=best.memory / GIGA, unit="GB", better="lower"),
        "traffic": Score(value=sum(best.traffic.values()) / GIGA, unit="GB", better="lower"),
        "step": Score(value=best.seconds, unit="s", better="lower"),
    }
    details = {"why": planning.why, "fits": best.fits, "candidates": [item.record() for item in planning.candidates]}
    return ctx.store.put_report(model, "plan", scores, details=details)
