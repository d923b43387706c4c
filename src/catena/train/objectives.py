"""Objectives: what a batch costs. Sums over tokens, so that a step of any number of pieces is one exact mean."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from catena.core.errors import UsageError
from catena.models.virtual_tokens import hidden_states, logits
from catena.train.batches import IGNORED, Batch

CHUNK_ABOVE = 50_000_000
"""Logits (tokens x vocabulary) above which they are made and used piece by piece: 200 MB in float32."""

# A head that does more than one matrix product to the hidden states; such a model computes its own logits.
SCALED_HEADS = ("final_logit_softcapping", "logits_scaling", "logit_scale")


def next_token_loss(model: Any, batch: Batch) -> Tensor:
    """Return the summed cross-entropy (nats) of a batch's learnt tokens.

    Only positions with a label pass through the output head: for conversations, whose questions are not learnt, and
    for small models, whose head is a good part of all work, that saves a large share of the time.
    """
    config = model.config
    # transformers tells from the positions, which begin again at each document, who may see whom (masking_utils).
    packed = {} if batch.positions is None else {"position_ids": batch.positions}
    if any(getattr(config, name, None) not in (None, 1, 1.0) for name in SCALED_HEADS):
        flat = _full(logits(model, input_ids=batch.inputs, use_cache=False, **packed).flatten(0, 1))
        return functional.cross_entropy(flat, batch.labels.flatten(), ignore_index=IGNORED, reduction="sum")
    # Rows are padded on the right and attention is causal: no real token ever sees padding, so no mask is needed.
    hidden = hidden_states(model, batch.inputs, **packed).flatten(0, 1)
    labels = batch.labels.flatten()
    if batch.learnt < labels.numel():
        learnt = labels.ne(IGNORED).nonzero()[:, 0]
        hidden, labels = hidden.index_select(0, learnt), labels.index_select(0, learnt)
    head = model.get_output_embeddings()
    if hidden.shape[0] * head.weight.shape[0] > CHUNK_ABOVE:
        return functional.linear_cross_entropy(
            hidden,
            head.weight,
            labels,
            linear_bias=head.bias,
            reduction="sum",
            options=torch.nn.LinearCrossEntropyOptions(),
        )
    return functional.cross_entropy(_full(head(hidden)), labels, reduction="sum")


def check_packable(model: Any) -> None:
    """Raise `UsageError` for a model in which packed documents would see each other: it takes no positions."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    if "position_ids" not in inspect.signature(inner.forward).parameters:
        raise UsageError(
            f"{type(inner).__name__} takes no positions, so documents in one row would see each other",
            hint="Set packing: false (or documents: joined).",
        )


def _full(logits: Tensor) -> Tensor:
    """Widen half precision: a sum of exponentials over the vocabulary needs it."""
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
