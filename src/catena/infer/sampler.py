"""Sampling: from a row of logits to a token, with the log-probability where it is asked for.

Each sequence brings one uniform number of its own for each token, drawn from its seed; the token is where that number
falls in the cumulative distribution. So an answer with a seed is the same whoever else is in the batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from catena.core.generate import SamplingParams

INVALID = -1
"""In place of a token where the logits are no numbers."""


@torch.inference_mode()
def sample(logits: Tensor, params: Sequence[SamplingParams], draws: Sequence[float]) -> list[int]:
    """Choose a token for each row of `logits` `[rows, vocabulary]`; `draws` are uniform in [0, 1).

    Temperature first, then top-k, then top-p (Holtzman et al. 2020) on what top-k left.
    """
    best, tokens = logits.max(dim=-1)
    rows = [index for index, param in enumerate(params) if param.temperature > 0]
    if rows:
        chosen = _draw(logits[rows].float(), [params[index] for index in rows], [draws[index] for index in rows])
        tokens[rows] = chosen
    return torch.where(torch.isfinite(best), tokens, INVALID).tolist()


def _draw(logits: Tensor, params: Sequence[SamplingParams], draws: Sequence[float]) -> Tensor:
    """Sample every row; returns `[rows]`."""
    size = logits.shape[-1]

    def column(values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=logits.dtype, device=logits.device)[:, None]

    # Subtracting the maximum first keeps a tiny temperature from overflowing.
    scaled = (logits - logits.amax(dim=-1, keepdim=True)) / column([param.temperature for param in params])
    scaled, order = scaled.sort(dim=-1, descending=True, stable=True)
    ranks = torch.arange(size, device=logits.device)[None, :]
    scaled = scaled.masked_fill(ranks >= column([param.top_k or size for param in params]), -torch.inf)
    probabilities = scaled.softmax(dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities
    # The first token always stays: nothing is before it.
    probabilities = probabilities.masked_fill(before >= column([param.top_p for param in params]), 0)
    cumulative = probabilities.cumsum(dim=-1)
    point = column(draws) * cumulative[:, -1:]
    index = torch.searchsorted(cumulative, point, right=True)
    # A draw just below 1 may round to 1 and fall behind the last token that is left.
    index = torch.minimum(index, (probabilities > 0).sum(dim=-1, keepdim=True) - 1).clamp(min=0)
    return order.gather(-1, index)[:, 0]


def logprobs_of(logits: Tensor, tokens: Tensor) -> Tensor:
    """Return the natural log-probability of `tokens` `[rows]` under `logits` `[rows, vocabulary]`."""
    chosen = logits.gather(-1, tokens[:, None])[:, 0]
    return (chosen - logits.logsumexp(dim=-1)).float()
