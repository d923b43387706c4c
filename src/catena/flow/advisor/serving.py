"""What serving a model takes and gives: memory, time to the first token, tokens a second, by a roofline.

A step of decoding reads every weight once for all users and the keys and values of each; it cannot be faster than the
memory allows, nor than the products take. A prompt is bound by its products. (Williams et al. 2009; `catena bench`
measures both on a machine.)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from catena.flow.advisor.need import HOURS_OF_MONTH, Need, parse_budget
from catena.flow.advisor.reckon import Number, reckon
from catena.flow.advisor.tables import Gpu, OpenModel, TaskKind

GIGA = 1e9


@dataclass(frozen=True, slots=True)
class Machine:
    """So many equal GPUs; or a processor, which is described as one."""

    key: str
    gpu: Gpu
    count: int
    cpu: bool = False


class Format(NamedTuple):
    """A number format of weights: bits of the layers' matrices and of the rest; `eight`: products in 8 bits."""

    name: str
    bits: float
    rest: float
    eight: bool = False


def formats(machine: Machine) -> Iterator[Format]:
    """Yield the formats that a machine computes with, the most exact first."""
    whole = 32.0 if machine.gpu.half == "float32" else 16.0
    yield Format(machine.gpu.half, whole, whole)
    if machine.gpu.fp8:
        yield Format("fp8", 8.0, 16.0, eight=True)
    yield Format("int8", 8.0, 16.0)
    # Groups of 128 weights share a scale of 16 bits.
    yield Format("int4", 4.125, 16.0)


class Lengths(NamedTuple):
    """Tokens of what is asked, and of the answer; 0 for encoders."""

    prompt: int
    new: int


def lengths_of(need: Need, task: TaskKind, model: OpenModel) -> Lengths:
    """Return the lengths that are reckoned with, within the model's context: what nobody asked for is cut first."""
    most = model.context
    prompt = need.prompt or task.prompt
    if model.kind == "encoder":
        return Lengths(min(prompt, most), 0)
    if model.kind == "encoder-decoder":
        return Lengths(min(prompt, most), min(need.new or task.new or 1, most))
    new = min(need.new or min(task.new or 1, most // 2), most - 1)
    return Lengths(min(prompt, most - new), new)


@dataclass(frozen=True)
class Serving:
    """A model in a format on some of the GPUs: `tensor` of them hold one copy, and there are `replicas`."""

    format: Format
    tensor: int
    replicas: int
    numbers: Sequence[Number]
    problems: Sequence[str] = field(default=())
    """What is asked for and not reached, in sentences; none: it fits."""
    excess: float = 0.0
    """How many times too much it is, at worst: 1.5 for half as much again."""

    @property
    def used(self) -> int:
        """GPUs altogether."""
        return self.tensor * self.replicas

    def value(self, name: str) -> float:
        """Return a number by its name."""
        return next(one.value for one in self.numbers if one.name == name)

    def record(self) -> dict[str, Any]:
        """Return it with plain names."""
        numbers = {one.name: one.record() for one in self.numbers}
        plan = {"format": self.format.name, "tensor": self.tensor, "replicas": self.replicas, "gpus": self.used}
        return {**plan, "problems": list(self.problems), "numbers": numbers}


def servings(model: OpenModel, machine: Machine, need: Need, lengths: Lengths) -> Iterator[Serving]:
    """Yield ways to serve a model there: the exact formats first, then most GPUs, then most replicas."""
    plans = sorted(_shares(model, machine, need), key=lambda plan: (-plan[0] * plan[1], plan[0]))
    for form in formats(machine):
        for tensor, replicas in plans:
            yield _serving(model, machine, need, lengths, (form, tensor, replicas))


def _shares(model: OpenModel, machine: Machine, need: Need) -> Iterator[tuple[int, int]]:
    """Yield GPUs that share a copy, and copies: as many as there are, as can be paid, and one.

    Nothing but the cost grows with the copies, so those between would not be chosen.
    """
    amount, unit = parse_budget(need.budget) if need.budget else (0.0, "")
    hours = {"hour": 1.0, "month": HOURS_OF_MONTH}.get(unit)
    both = math.gcd(model.heads, model.key_value_heads or model.heads)
    for tensor in range(1, min(machine.count, both) + 1):
        if both % tensor:
            continue
        most = machine.count // tensor
        paid = int(amount / (hours * tensor * need.price)) if hours and need.price else most
        yield from ((tensor, replicas) for replicas in sorted({1, max(1, min(paid, most)), most}))


def _serving(
    model: OpenModel, machine: Machine, need: Need, lengths: Lengths, plan: tuple[Format, int, int]
) -> Serving:
    form, tensor, replicas = plan
    users = -(-need.users // replicas)
    memory = _memory(model, need, lengths, (form, tensor, users))
    read, step_flops = _step_costs(model, lengths, form, users)
    speed = _speed(model, machine, need, lengths, plan, (users, read, step_flops))
    cost = _cost(machine, need, tensor * replicas, next((one for one in speed if one.name == "tokens"), None))
    numbers = (*memory, *speed, *cost)
    found = [*_too_long(model, need, lengths), *_problems(machine, need, {one.name: one.value for one in numbers})]
    return Serving(
        form, tensor, replicas, numbers, [text for text, _ in found], max((by for _, by in found), default=0)
    )


def _memory(model: OpenModel, need: Need, lengths: Lengths, share: tuple[Format, int, int]) -> list[Number]:
    """Return the GB that one GPU holds."""
    form, tensor, users = share
    weights = reckon(
        "weights",
        "(matrices * bits / 8 + (parameters - matrices) * rest_bits / 8) / 1e9",
        "GB",
        matrices=model.matrices,
        bits=form.bits,
        parameters=model.parameters,
        rest_bits=form.rest,
    )
    found = [weights]
    cache = 0.0
    if model.kind != "encoder":
        context = max(min(need.context, model.context), lengths.prompt + lengths.new)
        # Encoder-decoders keep the encoder's keys and values as well, so both halves of `context` are held once.
        held = reckon(
            "cache",
            "users * context * 2 * layers * key_value_width * value_bytes / 1e9",
            "GB",
            users=users,
            context=context,
            value_bytes=form.rest / 8,
            layers=model.layers,
            key_value_width=model.cache_width,
        )
        cache = held.value
        found.append(held)
    width = 4 * model.hidden + (3 if model.gated else 2) * model.feed_forward
    scratch = reckon(
        "scratch",
        "(chunk * width * 2 + users * vocabulary * 4) / 1e9",
        "GB",
        chunk=need.chunk,
        width=width,
        users=users,
        vocabulary=model.vocabulary if model.head else 0,
    )
    total = reckon(
        "memory",
        "(weights + cache) / tensor + scratch",
        "GB",
        weights=weights.value,
        cache=cache,
        tensor=tensor,
        scratch=scratch.value,
    )
    return [*found, scratch, total]


def _step_costs(model: OpenModel, lengths: Lengths, form: Format, users: int) -> tuple[Number, Number | None]:
    """Return the GB that a step reads, and the operations of one; a prompt of an encoder is its only step."""
    if model.kind == "encoder":
        weights = {"matrices": float(model.matrices), "bits": form.bits}
        return reckon("read", "matrices * bits / 8 / 1e9", "GB", **weights), None
    # An encoder-decoder's step runs through its decoder alone.
    matrices = model.layers * (model.layer + model.crossing)
    read = reckon(
        "read",
        "(matrices * bits / 8 + head * rest_bits / 8 + users * (prompt + new / 2) * 2 * layers * key_value_width "
        "* value_bytes) / 1e9",
        "GB",
        value_bytes=form.rest / 8,
        matrices=matrices,
        bits=form.bits,
        head=model.head,
        rest_bits=form.rest,
        users=users,
        prompt=lengths.prompt,
        new=lengths.new,
        layers=model.layers,
        key_value_width=model.cache_width,
    )
    flops = reckon(
        "step_operations", "2 * (matrices + head) * users", "", matrices=matrices, head=model.head, users=users
    )
    return read, flops


def _speed(
    model: OpenModel,
    machine: Machine,
    need: Need,
    lengths: Lengths,
    plan: tuple[Format, int, int],
    step: tuple[int, Number, Number | None],
) -> list[Number]:
    form, tensor, replicas = plan
    users, read, step_operations = step
    peak = (machine.gpu.tflops8 if form.eight else None) or machine.gpu.tflops
    rates = {"tensor": float(tensor), "bandwidth": machine.gpu.bandwidth, "bandwidth_share": need.bandwidth_share}
    reading = reckon("read_seconds", "read / (tensor * bandwidth * bandwidth_share)", "s", read=read.value, **rates)
    products = {"tensor": float(tensor), "tflops": peak, "compute_share": need.compute_share}
    prompt = _prompt(model, lengths)
    sent = {"layers": float(model.layers), "hidden": float(model.hidden), "tensor": float(tensor)}
    link = {"link": machine.gpu.link, "hop": need.hop}
    exchanged = "2 * layers * (tokens * hidden * 2 * 2 * (tensor - 1) / tensor / (link * 1e9) + hop)"
    found = [read, prompt]
    crossing = 0.0
    if tensor > 1:
        found.append(reckon("prompt_link", exchanged, "s", tokens=lengths.prompt, **sent, **link))
        crossing = found[-1].value
    first = reckon(
        "latency",
        "max(operations / (tensor * tflops * 1e12 * compute_share), weights_read / (tensor * bandwidth * "
        "bandwidth_share)) + prompt_link",
        "s",
        operations=prompt.value,
        weights_read=model.matrices * form.bits / 8 / GIGA,
        prompt_link=crossing,
        **products,
        **{name: rates[name] for name in ("bandwidth", "bandwidth_share")},
    )
    found.append(first)
    if step_operations is None:
        busy = {"replicas": float(replicas), "operations": prompt.value, **products}
        texts = "replicas * tensor * tflops * 1e12 * compute_share / operations"
        return [*found, reckon("texts", texts, "1/s", **busy)]
    found += [step_operations, reading]
    waiting = 0.0
    if tensor > 1:
        found.append(reckon("step_link", exchanged, "s", tokens=users, **sent, **link))
        waiting = found[-1].value
    one = reckon(
        "step",
        "max(read_seconds, step_operations / (tensor * tflops * 1e12 * compute_share)) + step_link",
        "s",
        read_seconds=reading.value,
        step_operations=step_operations.value,
        step_link=waiting,
        **products,
    )
    each = reckon("user_tokens", "1 / step", "1/s", step=one.value)
    together = {"replicas": float(replicas), "users": float(users), "step": one.value}
    return [*found, one, each, reckon("tokens", "replicas * users / step", "1/s", **together)]


def _prompt(model: OpenModel, lengths: Lengths) -> Number:
    """Return the operations that reading a prompt takes; a causal query sees half of the prompt on average."""
    sizes = {"prompt": float(lengths.prompt), "layers": float(model.layers), "query_width": float(model.query_width)}
    if model.kind == "decoder":
        formula = "prompt * (2 * matrices + 2 * layers * prompt * query_width) + 2 * head"
        return reckon("prompt_operations", formula, "", matrices=model.matrices, head=model.head, **sizes)
    matrices = model.layers * model.layer
    formula = "prompt * (2 * matrices + 4 * layers * prompt * query_width)"
    return reckon("prompt_operations", formula, "", matrices=matrices, **sizes)


def _cost(machine: Machine, need: Need, used: int, tokens: Number | None) -> list[Number]:
    found: list[Number] = []
    if machine.gpu.watts:
        formula, watts = "gpus * watts * 24 / 1000", machine.gpu.watts
        found.append(reckon("energy_day", formula, "kWh", gpus=used, watts=watts))
    if need.price is None:
        return found
    hour = reckon("cost_hour", "gpus * price", "", gpus=used, price=need.price)
    month = reckon("cost_month", "cost_hour * hours", "", cost_hour=hour.value, hours=HOURS_OF_MONTH)
    found += [hour, month]
    if tokens is not None:
        formula = "cost_hour / (tokens * 3600) * 1e6"
        found.append(reckon("cost_million_tokens", formula, "", cost_hour=hour.value, tokens=tokens.value))
    return found


def _too_long(model: OpenModel, need: Need, lengths: Lengths) -> Iterator[tuple[str, float]]:
    """Yield lengths that somebody asked for and the model does not take."""
    asked = [need.context] if "context" in need.model_fields_set and model.kind != "encoder" else []
    if (need.prompt or 0) > lengths.prompt or (need.new or 0) > lengths.new > 0:
        sides = (need.prompt or lengths.prompt, need.new or lengths.new)
        asked.append(max(sides) if model.kind == "encoder-decoder" else sum(sides) if lengths.new else sides[0])
    if max(asked, default=0) > model.context:
        yield f"takes {model.context:,} tokens, asked for are {max(asked):,}", max(asked) / model.context


def _problems(machine: Machine, need: Need, values: dict[str, float]) -> Iterator[tuple[str, float]]:
    """Yield what is asked for and not reached, and how many times too much it is."""
    room = machine.gpu.memory * (1 - need.reserve)
    if values["memory"] > room:
        yield f"needs {values['memory']:.3g} GB a GPU of {room:.3g} GB", values["memory"] / room
    if need.latency is not None and values["latency"] > need.latency:
        text = f"the first token takes {values['latency']:.3g} s, allowed are {need.latency:.3g} s"
        if "user_tokens" not in values:
            text = f"an answer takes {values['latency']:.3g} s, allowed are {need.latency:.3g} s"
        yield text, values["latency"] / need.latency
    if values.get("user_tokens", float("inf")) < need.speed:
        text = f"gives each user {values['user_tokens']:.3g} tokens a second, wanted are {need.speed:.3g}"
        yield text, need.speed / values["user_tokens"]
    if need.budget is not None:
        amount, unit = parse_budget(need.budget)
        if (cost := values.get(f"cost_{unit}", 0.0)) > amount:
            yield f"costs {cost:.4g} a {unit}, the budget is {amount:.4g}", cost / amount
