"""Adapters: a few new weights on a frozen model, put on by PEFT. Training begins here, `adapter_folder` ends it.

    lora, dora                  low-rank matrices beside linear layers (arXiv 2106.09685, 2402.09353); can be merged
    prompt, p_tuning            virtual tokens before the input, learnt as they are or through a small network
                                (arXiv 2104.08691, 2103.10385)
    prefix                      virtual keys and values before those of every layer (arXiv 2101.00190)

What PEFT 0.21 gets wrong is refused here with a reason, or done right: see `_refuse` and `virtual_tokens`.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

from pydantic import Field, model_validator

from catena.core.config import Config
from catena.core.errors import ConfigError, did_you_mean
from catena.core.registry import require
from catena.models.virtual_tokens import refuse_checkpointing, task_of

Kind = Literal["none", "lora", "dora", "prompt", "p_tuning", "prefix"]
Weights = Literal["float32", "bfloat16", "int8", "nf4"]
LOW_RANK = frozenset({"lora", "dora"})
POOLER = "pooler"


class AdapterConfig(Config):
    """Which few weights are trained while the model itself stays as it is."""

    kind: Kind = "none"
    """`none`: all weights are trained. Else only those of a `lora`, `dora`, `prompt`, `p_tuning` or `prefix` adapter.
    Prefix learns least of them (14.7 % where LoRA has 48.2 %, in PEFT's own comparison on GSM8K)."""
    base: Weights = "float32"
    """Number format of the frozen weights. `int8` and `nf4` (QLoRA) round the linear layers, `bfloat16` all weights."""
    rank: int = Field(default=8, ge=1)
    """Rank of the low-rank matrices."""
    alpha: int = Field(default=16, ge=1)
    """What they add is multiplied by alpha / rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of a low-rank matrix's inputs that is dropped in training."""
    targets: tuple[str, ...] = ()
    """Last names of the linear layers that get low-rank matrices, as q_proj; empty: all but the output head."""
    rslora: bool = False
    """Multiply by alpha / sqrt(rank) instead, so that high ranks learn too (arXiv 2312.03732)."""
    virtual_tokens: int = Field(default=16, ge=1)
    """Length of a prompt or prefix."""
    init_text: str = ""
    """What a prompt begins as, repeated or cut to its length; empty: random tokens of the vocabulary."""
    encoder_width: int = Field(default=0, ge=0)
    """Width of the network that makes a p_tuning prompt; 0: the model's."""

    @property
    def tokens_ahead(self) -> int:
        """How many tokens of a model's context the adapter takes for itself."""
        return 0 if self.kind == "none" or self.kind in LOW_RANK else self.virtual_tokens

    @model_validator(mode="after")
    def _consistent(self) -> AdapterConfig:
        if self.base != "float32" and self.kind == "none":
            raise ValueError(f"base {self.base} is for weights that stay as they are; choose a kind of adapter")
        if self.base in ("int8", "nf4") and self.kind == "dora":
            raise ValueError(f"dora needs the norms of dense weights; with base {self.base} use lora")
        if self.init_text and self.kind != "prompt":
            raise ValueError("init_text is what a prompt begins as; it needs kind: prompt")
        return self


def attach(model: Any, config: AdapterConfig, seed: int, tokenizer: Any = None) -> Any:
    """Put a new adapter on a model, which is changed in place, and return what is trained instead of it.

    Only the adapter and a classifier's head require gradients. The new weights depend on `seed` alone. Raises
    `ConfigError` for what cannot be had on this model.
    """
    if config.kind == "none":
        return model
    import torch

    _refuse(model, config)
    names = target_layers(model, config.targets)
    if config.base == "bfloat16":
        model.to(torch.bfloat16)
    elif config.base != "float32":
        _freeze(model, config.base)
    settings = _settings(model, config, names)
    with torch.random.fork_rng(devices=[]), quiet_peft():
        torch.manual_seed(seed)
        adapted = require("peft").get_peft_model(model, settings)
    if config.kind == "prompt" and config.init_text:
        _begin_with_text(adapted, config, tokenizer)
    if config.base == "bfloat16":
        for parameter in adapted.parameters():
            parameter.data = parameter.data.float() if parameter.requires_grad else parameter.data
    return adapted


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Keep to themselves what PEFT 0.21 warns of and nobody here can change."""
    with warnings.catch_warnings():
        # It does not know the class of frozen layers; what it needs of one, they have.
        warnings.filterwarnings("ignore", message="Unsupported layer type")
        # It asks transformers by a name that is about to go.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        yield


def _freeze(model: Any, weights: str) -> None:
    from catena.models.nf4 import freeze_

    names = dense_layers(model)
    if not names:
        raise ConfigError(
            f"the model has no plain linear layers to round to {weights}", hint="Use adapter.base: float32."
        )
    freeze_(model, names, weights)


def _refuse(model: Any, config: AdapterConfig) -> None:
    """Raise `ConfigError` for what PEFT does wrong without saying so."""
    task = task_of(model)
    if config.base == "bfloat16" and task in ("SEQ_CLS", "TOKEN_CLS"):
        raise ConfigError(
            "base bfloat16 would train the classifier's head in 8 bits of precision too",
            hint="Use adapter.base: float32, int8 or nf4.",
        )
    if config.kind in LOW_RANK:
        return
    if task is None:
        raise ConfigError(
            f"a {config.kind} adapter needs a model that continues, translates or classifies text, not "
            f"{type(model).__name__}",
            hint="Use adapter.kind: lora.",
        )
    if config.kind != "prefix" and task == "SEQ_CLS" and hasattr(model, "score"):
        raise ConfigError(
            f"{type(model).__name__} reads its answer off the last token, which it cannot find behind virtual tokens",
            hint="Use adapter.kind: lora or prefix.",
        )
    if config.kind == "prefix" and "past_key_values" not in inspect.signature(model.base_model.forward).parameters:
        raise ConfigError(f"{type(model).__name__} takes no keys and values, so no prefix", hint="Use kind: lora.")
    refuse_checkpointing(model, config.kind == "prefix")


def trained_in_full(model: Any) -> list[str]:
    """Return the modules of a classifier that are new, and so trained and kept whole: its head, and its pooler."""
    if task_of(model) not in ("SEQ_CLS", "TOKEN_CLS"):
        return []
    names = [
        name
        for name, child in model.named_children()
        if name != model.base_model_prefix and next(child.parameters(), None) is not None
    ]
    pooler = getattr(getattr(model, model.base_model_prefix, None), POOLER, None)
    return names if pooler is None else [*names, f"{model.base_model_prefix}.{POOLER}"]


def dense_layers(model: Any) -> list[str]:
    """Return the names of the linear layers that may be rounded or adapted: all but heads and poolers."""
    from torch import nn

    return [name for name, layer in _inner_layers(model) if isinstance(layer, nn.Linear)]


def _inner_layers(model: Any) -> Iterable[tuple[str, Any]]:
    head, whole = model.get_output_embeddings(), tuple(trained_in_full(model))
    for name, layer in model.named_modules():
        inside = any(name == module or name.startswith(module + ".") for module in whole)
        if layer is not head and not inside:
            yield name, layer


def target_layers(model: Any, targets: Iterable[str] = ()) -> list[str]:
    """Return the names of the layers that get low-rank matrices, short where that is unambiguous.

    Raises `ConfigError` where a target is the name of no such layer.
    """
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    from catena.models.nf4 import NF4Linear
    from catena.models.packed import PackedLinear

    kinds = (nn.Linear, Conv1D, PackedLinear, NF4Linear)
    layers = [name for name, layer in _inner_layers(model) if isinstance(layer, kinds)]
    known = {name.rpartition(".")[2] for name in layers}
    for target in targets:
        if target not in known:
            raise ConfigError(
                f"adapter.targets: there is no linear layer {target!r}, or it is an output head",
                hint=did_you_mean(target, known),
            )
    wanted = set(targets) or known
    chosen = [name for name in layers if name.rpartition(".")[2] in wanted]
    others = {name for name, layer in model.named_modules() if isinstance(layer, kinds)} - set(chosen)
    ambiguous = any(name.rpartition(".")[2] in wanted for name in others)
    return chosen if ambiguous else sorted(wanted)


def _settings(model: Any, config: AdapterConfig, targets: list[str]) -> Any:
    """Return PEFT's config."""
    from transformers.pytorch_utils import Conv1D

    from catena.models.nf4 import NF4Linear
    from catena.models.packed import PackedLinear

    peft = require("peft")
    common = {"task_type": task_of(model), "modules_to_save": trained_in_full(model) or None}
    if config.kind not in LOW_RANK:
        length = {"num_virtual_tokens": config.virtual_tokens}
        if config.kind == "prefix":
            return peft.PrefixTuningConfig(**common, **length)
        if config.kind == "p_tuning":
            return peft.PromptEncoderConfig(**common, **length, encoder_hidden_size=config.encoder_width or None)
        return peft.PromptTuningConfig(**common, **length, prompt_tuning_init="SAMPLE_VOCAB")
    settings = peft.LoraConfig(
        **common,
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        use_rslora=config.rslora,
        use_dora=config.kind == "dora",
        target_modules=targets,
        fan_in_fan_out=any(isinstance(layer, Conv1D) for layer in model.modules()),
    )
    linear = peft.tuners.lora.Linear
    settings._register_custom_module({PackedLinear: linear, NF4Linear: linear})
    return settings


def _begin_with_text(adapted: Any, config: AdapterConfig, tokenizer: Any) -> None:
    import torch

    ids = tokenizer.encode(config.init_text, add_special_tokens=False) if tokenizer is not None else []
    if not ids:
        raise ConfigError("adapter.init_text has no tokens", hint="Say a few words, or leave it empty.")
    weight = adapted.prompt_encoder["default"].embedding.weight
    repeated = torch.tensor([ids[at % len(ids)] for at in range(len(weight))])
    with torch.no_grad():
        weight.copy_(adapted.get_input_embeddings()(repeated))
