"""Sampling: from a row of logits to a token, with the log-probabilities where they are asked for.

Each sequence brings one uniform number of its own for each token, drawn from its seed; the token is where that number
falls in the cumulative distribution. So an answer with a seed is the same whoever else is in the batch, and whether
its tokens were guessed before or not.

    raw logits --adjust--> penalties, bias, grammar --sample--> token          reported are the raw ones
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from catena.core.generate import SamplingParams, TokenLogprob
from catena.infer.scheduler import Sequence as Running

if TYPE_CHECKING:
    from catena.infer.runner import Output

INVALID = -1
"""In place of a token where the logits are no numbers."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A chosen token, with its log-probability where its request asks for it."""

    token: int
    logprob: TokenLogprob | None = None


def choose(output: Output) -> list[list[Choice]]:
    """Choose a step's tokens: for each sampled chunk one behind its last known token, and one behind each guess."""
    rows = [chunk.sequence for chunk in output.sampled for _ in range(1 + len(chunk.draft))]
    draws: list[float] = []
    for chunk in output.sampled:
        sequence = chunk.sequence
        while len(sequence.draws) < 1 + len(chunk.draft):
            sequence.draws.append(sequence.random.random())
        draws += sequence.draws[: 1 + len(chunk.draft)]
    if output.best is not None and not any(one.params.temperature > 0 or adjusts(one) for one in rows):
        tokens = output.best
    else:
        tokens = sample(adjust(output.logits, rows), [one.params for one in rows], draws)
    told = [at for at, one in enumerate(rows) if one.params.logprobs is not None and tokens[at] != INVALID]
    if not told:
        choices = iter([Choice(token) for token in tokens])
        return [[next(choices) for _ in range(1 + len(chunk.draft))] for chunk in output.sampled]
    entries = report(output.logits[told], [tokens[at] for at in told], [rows[at].params.logprobs or 0 for at in told])
    reported = dict(zip(told, entries, strict=True))
    choices = iter([Choice(token, reported.get(at)) for at, token in enumerate(tokens)])
    return [[next(choices) for _ in range(1 + len(chunk.draft))] for chunk in output.sampled]


def adjusts(sequence: Running) -> bool:
    """Whether a sequence's logits depend on its own tokens, a bias or a grammar."""
    params = sequence.params
    penalties = params.presence_penalty or params.frequency_penalty or params.repetition_penalty != 1.0
    return bool(penalties or params.logit_bias or sequence.matcher is not None)


def adjust(logits: Tensor, sequences: Sequence[Running]) -> Tensor:
    """Return logits `[rows, vocabulary]` with each sequence's penalties, bias and grammar worked in.

    Repetition: Keskar et al. 2019 (arXiv 1909.05858); presence, frequency and bias: OpenAI's API reference.
    """
    rows = [row for row, sequence in enumerate(sequences) if adjusts(sequence)]
    if not rows:
        return logits
    logits = logits.float().clone()
    for row in rows:
        _adjust_row(logits[row], sequences[row])
    return logits


def _adjust_row(row: Tensor, sequence: Running) -> None:
    params = sequence.params
    if params.repetition_penalty != 1.0:
        seen = torch.tensor(sorted(set(sequence.tokens)), device=row.device)
        values = row[seen]
        row[seen] = torch.where(values > 0, values / params.repetition_penalty, values * params.repetition_penalty)
    if (params.presence_penalty or params.frequency_penalty) and sequence.generated:
        counts = torch.bincount(torch.tensor(sequence.generated), minlength=len(row)).to(row)
        row -= params.presence_penalty * (counts > 0) + params.frequency_penalty * counts
    if params.logit_bias:
        row[torch.tensor(list(params.logit_bias), device=row.device)] += torch.tensor(
            list(params.logit_bias.values()), dtype=row.dtype, device=row.device
        )
    if sequence.matcher is not None:
        row.masked_fill_(~sequence.matcher.allowed(len(row)).to(row.device), -torch.inf)


def sample(logits: Tensor, params: Sequence[SamplingParams], draws: Sequence[float]) -> list[int]:
    """Choose a token for each row of `logits` `[rows, vocabulary]`; `draws` are uniform in [0, 1)."""
    return sampled(logits, params, draws).tolist()


@torch.inference_mode()
def sampled(logits: Tensor, params: Sequence[SamplingParams], draws: Sequence[float]) -> Tensor:
    """Return the tokens `[rows]` on the device of the logits, without waiting for it.

    Temperature first, then top-k, then top-p (Holtzman et al. 2020) and min-p (arXiv 2407.01082) on what top-k left.
    """
    best, tokens = logits.max(dim=-1)
    warm = [index for index, param in enumerate(params) if param.temperature > 0]
    if warm:
        rows = moved(warm, logits.device, torch.long)
        chosen = _draw(logits[rows].float(), [params[index] for index in warm], [draws[index] for index in warm])
        tokens[rows] = chosen
    return torch.where(torch.isfinite(best), tokens, INVALID)


def moved(values: Sequence[float], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return numbers of the host on a device; what was launched there before is not waited for."""
    host = torch.tensor(values, dtype=dtype)
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host.to(device)


def _draw(logits: Tensor, params: Sequence[SamplingParams], draws: Sequence[float]) -> Tensor:
    """Sample every row; returns `[rows]`."""
    size = logits.shape[-1]

    def column(values: Sequence[float]) -> Tensor:
        return moved(values, logits.device, logits.dtype)[:, None]

    # Subtracting the maximum first keeps a tiny temperature from overflowing.
    scaled = (logits - logits.amax(dim=-1, keepdim=True)) / column([param.temperature for param in params])
    scaled, order = scaled.sort(dim=-1, descending=True, stable=True)
    ranks = torch.arange(size, device=logits.device)[None, :]
    scaled = scaled.masked_fill(ranks >= column([param.top_k or size for param in params]), -torch.inf)
    probabilities = scaled.softmax(dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities
    # The first token always stays: nothing is before it.
    least = column([param.min_p for param in params]) * probabilities[:, :1]
    dropped = (before >= column([param.top_p for param in params])) | (probabilities < least)
    probabilities = probabilities.masked_fill(dropped, 0)
    cumulative = probabilities.cumsum(dim=-1)
    point = column(draws) * cumulative[:, -1:]
    index = torch.searchsorted(cumulative, point, right=True)
    # A draw just below 1 may round to 1 and fall behind the last token that is left.
    index = torch.minimum(index, (probabilities > 0).sum(dim=-1, keepdim=True) - 1).clamp(min=0)
    return order.gather(-1, index)[:, 0]


@torch.inference_mode()
def report(logits: Tensor, tokens: Sequence[int], tops: Sequence[int]) -> list[TokenLogprob]:
    """Return each row's token with its natural log-probability, and the `tops[row]` likeliest tokens.

    Logits `[rows, vocabulary]`, as the model gave them: before temperature, penalties and grammar.
    """
    if not tokens:
        return []
    # Not in float64, and with the very values that the likeliest are read from: lm-evaluation-harness compares them.
    logprobs = logits.float().log_softmax(dim=-1)
    chosen = logprobs.gather(-1, torch.tensor(list(tokens), device=logits.device)[:, None])[:, 0].tolist()
    most = min(max(tops), logits.shape[-1])
    if not most:
        return [TokenLogprob(token, value) for token, value in zip(tokens, chosen, strict=True)]
    values, ids = (part.tolist() for part in logprobs.topk(most, dim=-1))
    rows = zip(tokens, chosen, tops, ids, values, strict=True)
    return [
        TokenLogprob(token, value, tuple(zip(row[:top], best[:top], strict=True)))
        for token, value, top, row, best in rows
    ]
