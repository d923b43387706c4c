"""How fast a model runs here, beside what the machine can do at most: reading weights once a step, multiplying.

One token for each sequence reads every weight and the keys and values of all; so a step cannot be faster than

    (bytes of weights + bytes of keys and values) / read bandwidth          (a roofline: Williams et al. 2009)

and a prompt not faster than its operations at the speed of a square matrix product. Both are measured in the same
process, just before and after, so that the shares hold where others use the machine too.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field

from catena.core.config import Config, parse
from catena.core.errors import UsageError
from catena.core.generate import Request, SamplingParams
from catena.infer.capacity import EngineConfig
from catena.infer.engine import Engine
from catena.infer.linears import dtype_for
from catena.models.checkpoint import load
from catena.models.measure import gemm, gpu_read_bandwidth, read_bandwidth
from catena.models.quant import quantize_

TRIES = 3


class BenchConfig(Config):
    """What is run."""

    batch_sizes: tuple[int, ...] = (1,)
    """Sequences at once."""
    prompt_tokens: int | None = Field(default=None, ge=1)
    """Tokens of each prompt; default: 128, fewer where the model's context is short."""
    new_tokens: int | None = Field(default=None, ge=2)
    """Tokens of each answer; default: 32, fewer likewise."""
    device: str = "cpu"
    """`cpu`, `cuda`, `cuda:1`."""
    precision: Literal["auto", "float32", "bfloat16", "int8", "w8a8", "int4"] = "auto"
    """int8, w8a8 and int4 round the weights when they are loaded, to nearest, and compute in bfloat16; w8a8 rounds
    the inputs of a layer too."""
    seed: int = 0


class Lengths(NamedTuple):
    """Tokens of each prompt and of each answer."""

    prompt: int
    new: int


USUAL = Lengths(128, 32)


def lengths_for(config: BenchConfig, context: int) -> Lengths:
    """Return the lengths that are measured: those asked for, else the usual ones, or shorter ones that fit the context.

    Raises `UsageError` where what was asked for does not fit.
    """
    new = config.new_tokens or max(2, min(USUAL.new, context // 5 if config.prompt_tokens is None else USUAL.new))
    prompt = config.prompt_tokens or max(1, min(USUAL.prompt, context - new))
    if config.new_tokens is None:
        new = max(2, min(new, context - prompt))
    if prompt + new > context:
        raise UsageError(
            f"prompt_tokens and new_tokens are {prompt + new} together; the context is {context} tokens",
            hint="Leave one of them out, and it is chosen so that both fit.",
        )
    return Lengths(prompt, new)


def bench_folder(folder: Path, **options: Any) -> dict[str, Any]:
    """Measure a model folder; `options` are the fields of `BenchConfig`. Returns the config, the machine and rows."""
    config = parse(BenchConfig, options, where="bench")
    if config.device != "cpu" and not torch.cuda.is_available():
        raise UsageError(f"there is no device {config.device!r} here", hint="--device cpu")
    rounded = config.precision in ("int8", "w8a8", "int4")
    dtype = torch.bfloat16 if rounded else dtype_for(folder, config.precision)
    model, tokenizer = load(folder, dtype, config.device)
    if rounded:
        quantize_(model, scheme=config.precision)
    return bench_model(model, tokenizer, config)


def bench_model(model: Any, tokenizer: Any, config: BenchConfig) -> dict[str, Any]:
    """Measure a model in memory, which is the engine's from here on."""
    bits, dtype = weight_bytes(model), next(model.parameters()).dtype
    flops = 2 * linear_weights(model)
    largest = max(config.batch_sizes)
    budget = max(512, config.prompt_tokens or USUAL.prompt)
    options = EngineConfig(max_running=largest, token_budget=budget, prefix_cache=False, cache_bytes=1 << 40)
    engine = Engine(model, tokenizer, options)
    try:
        lengths = lengths_for(config, engine.prompter.context)
        rows = []
        for count in config.batch_sizes:
            peak = (gemm(dtype, config.device, 1024) or 0.0) * 1e9
            timed = Timed.of(engine, count, config, lengths)
            per_token = engine.runner.layout.bytes_per_token * (lengths.prompt + lengths.new / 2)
            rows.append(_row(timed, count, lengths, bits + count * per_token, flops, peak))
    finally:
        engine.close()
    return {
        "config": config.model_dump(mode="json") | {"prompt_tokens": lengths.prompt, "new_tokens": lengths.new},
        "context": engine.prompter.context,
        "shortened": lengths != (config.prompt_tokens or USUAL.prompt, config.new_tokens or USUAL.new),
        "model": type(model).__name__,
        "weights_bytes": bits,
        "format": str(dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "paged": engine.runner.paged,
        "rows": rows,
    }


@dataclass(frozen=True, slots=True)
class Timed:
    """The shortest times of a few tries, in seconds, and the bandwidth measured between them, in bytes a second."""

    prompt: float
    both: float
    bandwidth: float

    @staticmethod
    def of(engine: Engine, count: int, config: BenchConfig, lengths: Lengths) -> Timed:
        """Time prompts alone, then prompts with answers."""
        _seconds(engine, count, config.seed, lengths._replace(new=2))
        prompt = both = float("inf")
        bandwidth = 0.0
        for _ in range(TRIES):
            prompt = min(prompt, _seconds(engine, count, config.seed, lengths._replace(new=1)))
            both = min(both, _seconds(engine, count, config.seed, lengths))
            read = read_bandwidth() if config.device == "cpu" else gpu_read_bandwidth(config.device)
            bandwidth = max(bandwidth, read * 1e9)
        return Timed(prompt, both, bandwidth)


def _seconds(engine: Engine, count: int, seed: int, lengths: Lengths) -> float:
    chance = random.Random(seed)
    params = SamplingParams(max_tokens=lengths.new, ignore_end=True)
    prompts = [[chance.randrange(engine.codec.vocabulary) for _ in range(lengths.prompt)] for _ in range(count)]
    began = time.perf_counter()
    found = list(engine.generate([Request(str(at), prompt, params) for at, prompt in enumerate(prompts)]))
    spent = time.perf_counter() - began
    assert all(len(one.token_ids) == lengths.new for one in found)
    return spent


def _row(timed: Timed, count: int, lengths: Lengths, step_bytes: float, flops: float, peak: float) -> dict[str, Any]:
    """Return what one batch size came to."""
    step = max(1e-9, (timed.both - timed.prompt) / (lengths.new - 1))
    prompts = count * lengths.prompt
    return {
        "batch_size": count,
        "prefill_tokens_per_s": round(prompts / timed.prompt, 1),
        "prefill_gflops": round(prompts * flops / timed.prompt / 1e9, 1),
        "gemm_gflops": round(peak / 1e9, 1),
        "prefill_share": round(prompts * flops / timed.prompt / peak, 3) if peak else None,
        "decode_tokens_per_s": round(count / step, 2),
        "step_ms": round(step * 1000, 3),
        "step_mb": round(step_bytes / 1e6, 2),
        "read_gb_per_s": round(step_bytes / step / 1e9, 2),
        "bandwidth_gb_per_s": round(timed.bandwidth / 1e9, 2),
        "decode_share": round(step_bytes / step / timed.bandwidth, 3),
    }


def weight_bytes(model: Any) -> int:
    """Return the bytes of weights that one step reads: all but embeddings, which are looked up, unless they are the
    output head as well."""
    looked_up = {id(layer.weight) for layer in model.modules() if isinstance(layer, torch.nn.Embedding)}
    head = model.get_output_embeddings()
    if head is not None:
        looked_up.discard(id(getattr(head, "weight", None)))
    seen = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers()) if id(tensor) not in looked_up}
    return sum(tensor.numel() * tensor.element_size() for tensor in seen.values())


def linear_weights(model: Any) -> int:
    """Return the number of weights that each token is multiplied with."""
    sizes = ((getattr(layer, "in_features", 0), getattr(layer, "out_features", 0)) for layer in model.modules())
    return sum(inputs * outputs for inputs, outputs in sizes)
