"""Virtual tokens: how a model is called that has a prompt or prefix adapter before its input. Objectives ask here.

PEFT's own call gives logits for the virtual tokens too, and a model's parts (`get_decoder`) know nothing of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from catena.core.errors import ConfigError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

TASKS = {"ForSequenceClassification": "SEQ_CLS", "ForTokenClassification": "TOKEN_CLS", "ForCausalLM": "CAUSAL_LM"}


def task_of(model: Any) -> str | None:
    """Return PEFT's name of what a model is for, or None where it has none (a masked language model)."""
    name = type(model).__name__
    for ending, task in TASKS.items():
        if name.endswith(ending):
            return task
    if model.config.is_encoder_decoder:
        return "SEQ_2_SEQ_LM"
    return "CAUSAL_LM" if name.endswith("LMHeadModel") else None


def refuse_checkpointing(model: Any, prefix: bool) -> None:
    """Raise `ConfigError` for a prefix on a model that computes its layers again in the backward pass."""
    if prefix and getattr(model, "is_activation_checkpointing", False):
        raise ConfigError(
            "gradient checkpointing drops the keys and values that a prefix consists of",
            hint="Turn it off, or use another kind of adapter.",
        )


def prompt_kind(model: Any) -> str | None:
    """Return "prompt", "p_tuning" or "prefix" for a model with such an adapter, else None."""
    settings = getattr(model, "peft_config", None)
    if not isinstance(settings, dict) or not settings:
        return None
    names = {"PROMPT_TUNING": "prompt", "P_TUNING": "p_tuning", "PREFIX_TUNING": "prefix"}
    return names.get(model.active_peft_config.peft_type.value)


def tokens_ahead(model: Any) -> int:
    """Return how many tokens of its context a model gives to an adapter's virtual tokens."""
    return int(model.active_peft_config.num_virtual_tokens) if prompt_kind(model) else 0


def hidden_states(model: Any, inputs: Tensor, **others: Any) -> Tensor:
    """Return a decoder's last hidden states [rows, tokens, width] of token ids [rows, tokens], without the output head.

    With a prompt or prefix it goes through that, which `model.get_decoder()` alone would pass by; the virtual tokens'
    own states are left out.
    """
    kind, states = prompt_kind(model), slice(None)
    given = {"input_ids": inputs, "use_cache": False, **others}
    if kind is not None:
        if others:
            raise UsageError(
                f"a {kind} adapter cannot be trained on packed documents: each would need the virtual tokens again",
                hint="Turn packing off, or use adapter.kind: lora.",
            )
        refuse_checkpointing(model, kind == "prefix")
        prompt = model.get_prompt(len(inputs))
        if kind == "prefix":
            given["past_key_values"] = prompt
        else:
            import torch

            embedded = model.get_input_embeddings()(given.pop("input_ids"))
            given["inputs_embeds"] = torch.cat([prompt.to(embedded.dtype), embedded], dim=1)
            states = slice(prompt.shape[1], None)
    found: Tensor = model.get_decoder()(**given).last_hidden_state
    return found[:, states]


def logits(model: Any, **inputs: Any) -> Tensor:
    """Return a model's logits for its inputs, without those of virtual tokens that an adapter puts before them."""
    found: Tensor = model(**inputs).logits
    kind = prompt_kind(model)
    task = task_of(model.get_base_model()) if kind else None
    # Virtual tokens stand in front of what is read; an encoder-decoder is read at its decoder, where only `prompt` is.
    ahead = kind in ("prompt", "p_tuning") and task in ("CAUSAL_LM", "TOKEN_CLS")
    if ahead or (kind == "prompt" and task == "SEQ_2_SEQ_LM"):
        return found[:, model.active_peft_config.num_virtual_tokens :]
    return found
