"""The report on a compressed model: size, perplexity, accuracy and latency, before and after.

Perplexity and accuracy come from reports that `evaluate` made about both models; latency is measured here, through the
native engine, the two models in turn, so that what else the machine does meets both.
"""

from __future__ import annotations

import time
from contextlib import ExitStack, closing

from pydantic import Field

from catena.core.config import Config
from catena.core.errors import UsageError
from catena.core.generate import Generator, Request, SamplingParams
from catena.core.stage import Context, stage
from catena.core.types import ModelVersion, Report, Score

SUITE = "compression"


class ReportConfig(Config):
    """How latency is measured."""

    prompt: int = Field(default=64, ge=1)
    """Tokens of the prompt; at most half the model's context."""
    answer: int = Field(default=32, ge=2)
    """Tokens of the answer; at most half the model's context."""
    rounds: int = Field(default=5, ge=1)
    """Times that each model answers, after one to warm up; the fastest counts: what else runs can only add to it."""


@stage("compress.report", uses=("catena.infer.engine",))
def report(
    ctx: Context,
    cfg: ReportConfig,
    *,
    model: ModelVersion,
    baseline: ModelVersion,
    perplexity: Report | None = None,
    baseline_perplexity: Report | None = None,
    answers: Report | None = None,
    baseline_answers: Report | None = None,
) -> Report:
    """Put a compressed model beside the one it was made from: size, latency, and what evaluation found about both."""
    before = {**_scores(baseline, baseline_perplexity), **_scores(baseline, baseline_answers)}
    after = {**_scores(model, perplexity), **_scores(model, answers)}
    times = latencies(ctx, cfg, {"before": baseline, "after": model})
    before |= {"size": _size(baseline), **times["before"]}
    after |= {"size": _size(model), **times["after"]}
    scores = dict(after)
    for name in ("size", "first_token_ms", "token_ms"):
        scores[f"{name}_ratio"] = Score(value=round(after[name].value / before[name].value, 4), better="lower")
    return ctx.store.put_report(
        model,
        SUITE,
        scores,
        details={
            "baseline": baseline.digest,
            "before": {name: score.value for name, score in before.items()},
            "after": {name: score.value for name, score in after.items()},
            "config": cfg.model_dump(mode="json"),
        },
    )


def _scores(model: ModelVersion, found: Report | None) -> dict[str, Score]:
    if found is None:
        return {}
    if found.subject != model.digest:
        raise UsageError(
            f"the report {found.suite!r} is about {found.subject[:12]}, not about {model.digest[:12]}",
            hint="Give each model its own reports.",
        )
    return dict(found.scores)


def _size(model: ModelVersion) -> Score:
    return Score(value=model.size, unit="bytes", better="lower")


def latencies(ctx: Context, cfg: ReportConfig, models: dict[str, ModelVersion]) -> dict[str, dict[str, Score]]:
    """Measure models in turn: milliseconds to the first token, and from one token of the answer to the next."""
    shortest = min(model.context or 1024 for model in models.values())
    prompt, answer = min(cfg.prompt, shortest // 2), min(cfg.answer, shortest // 2)
    spent: dict[str, dict[str, list[float]]] = {name: {"first_token_ms": [], "token_ms": []} for name in models}
    progress = ctx.progress("latency", (cfg.rounds + 1) * len(models), "answers")
    with ExitStack() as stack:
        opened = {name: stack.enter_context(closing(ctx.generator(model))) for name, model in models.items()}
        for number in range(cfg.rounds + 1):
            for name, generator in opened.items():
                first, whole = _once(generator, number, prompt, answer)
                progress.advance()
                if number:  # the first round warms up
                    spent[name]["first_token_ms"].append(1000 * first)
                    spent[name]["token_ms"].append(1000 * (whole - first) / (answer - 1))
    progress.finish()
    return {name: {key: _milliseconds(values) for key, values in kinds.items()} for name, kinds in spent.items()}


def _once(generator: Generator, number: int, prompt: int, answer: int) -> tuple[float, float]:
    """Return the seconds of an answer of one token, and of one of `answer` tokens, to prompts not seen before."""
    return _spent(generator, 2 * number, prompt, 1), _spent(generator, 2 * number + 1, prompt, answer)


def _spent(generator: Generator, number: int, prompt: int, length: int) -> float:
    params = SamplingParams(max_tokens=length, ignore_end=True)
    ids = tuple(5 + (17 * number + at) % 200 for at in range(prompt))
    started = time.perf_counter()
    list(generator.generate([Request(str(number), ids, params)]))
    return time.perf_counter() - started


def _milliseconds(values: list[float]) -> Score:
    return Score(value=round(min(values), 4), n=len(values), unit="ms", better="lower")
