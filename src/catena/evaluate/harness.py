"""Tasks of lm-evaluation-harness by name, against any generator of ours.

    kind: lm_eval -> lm_eval.simple_evaluate(our LM) -> its samples -> lines and evidence, as of any other task

The harness (package `lm_eval`, extra `harness`) reads its task and its data, makes the requests and the scores; our
side answers them through the cache of answers, in the engine's batches. Its data may come from a network.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from catena.core.digest import digest_of
from catena.core.errors import DataError, NotFound, did_you_mean
from catena.core.generate import SamplingParams
from catena.core.registry import require
from catena.evaluate.ask import Asker, cut_windows
from catena.evaluate.measures import OF_TEXTS, Array, mean_of
from catena.evaluate.outcome import Outcome
from catena.evaluate.task import HarnessTask

MAX_TOKENS = 256
"""Longest answer where a task does not say: the harness's own default."""


def language_model(asker: Asker, label: str) -> Any:
    """Return an `LM` of the harness that asks ours."""
    base = require("lm_eval.api.model", "harness").LM

    class Ours(base):  # type: ignore[misc, valid-type]
        """Answers the three kinds of requests."""

        def loglikelihood(self, requests: Sequence[Any], **_: Any) -> list[tuple[float, bool]]:
            pairs = [[(one.args[0], one.args[1])] for one in requests]
            return [(told.logprob, told.greedy) for (told,) in asker.likelihoods(pairs, label, greedy=True)]

        def loglikelihood_rolling(self, requests: Sequence[Any], **_: Any) -> list[float]:
            cuts = []
            before = list(asker.start[:1])
            for one in requests:
                ids = [*before, *asker.codec.continuation(one.args[0])]
                found = cut_windows(len(ids) - len(before), asker.context or 1024, len(before))
                cuts.append([(ids[start:end], first - start) for start, first, end in found])
            return [sum(piece.logprob for piece in pieces) for pieces in asker.windows(cuts, label)]

        def generate_until(self, requests: Sequence[Any], **_: Any) -> list[str]:
            return [told.text for told in asker.write(prompts_of(requests), label)]

    return Ours()


def prompts_of(requests: Sequence[Any]) -> list[tuple[str, SamplingParams]]:
    """Return what is to be written. A request that wants k answers stands there k times: each is drawn by itself."""
    times: Counter[int] = Counter()
    asked = []
    for one in requests:
        asked.append((one.args[0], params_of(one.args[1], times[id(one)])))
        times[id(one)] += 1
    return asked


def params_of(given: Mapping[str, Any], seed: int = 0) -> SamplingParams:
    """Return how to sample, from the harness's `generation_kwargs`; the seed is for those that are drawn."""
    until = given.get("until") or ()
    stops = (until,) if isinstance(until, str) else tuple(until)
    sampled = bool(given.get("do_sample")) and float(given.get("temperature", 0)) > 0
    return SamplingParams(
        max_tokens=int(given.get("max_gen_toks", given.get("max_new_tokens", MAX_TOKENS))),
        temperature=float(given["temperature"]) if sampled else 0.0,
        top_p=float(given.get("top_p", 1.0)) if sampled else 1.0,
        stop=tuple(stop for stop in stops if stop),
        seed=seed if sampled else None,
    )


def run_harness(task: HarnessTask, asker: Asker, limit: int | None, seed: int) -> Outcome:
    """Let the harness perform a task on our model; raises `NotFound` for a name that it does not know."""
    evaluate = require("lm_eval", "harness").simple_evaluate
    manager = require("lm_eval.tasks", "harness").TaskManager(include_path=task.include or None)
    if task.task not in manager.all_tasks:
        raise NotFound(
            f"lm-evaluation-harness has no task {task.task!r}", hint=did_you_mean(task.task, manager.all_tasks)
        )
    found = evaluate(
        language_model(asker, task.name),
        tasks=[task.task],
        num_fewshot=task.num_fewshot,
        limit=limit,
        task_manager=manager,
        bootstrap_iters=0,
        random_seed=seed,
        numpy_random_seed=seed,
        torch_random_seed=seed,
        fewshot_random_seed=seed,
    )
    if not found or not any(found["samples"].values()):
        raise DataError(f"lm-evaluation-harness measured nothing in {task.task!r}")
    return outcome_of(task, found["samples"], found["results"])


def outcome_of(task: HarnessTask, samples: Mapping[str, Sequence[Mapping[str, Any]]], results: Any) -> Outcome:
    """Return the harness's samples as lines and evidence; those of a group's tasks stand behind one another."""
    rows: dict[tuple[str, Any], dict[str, Mapping[str, Any]]] = {}
    for name, some in samples.items():
        for sample in some:
            rows.setdefault((name, sample["doc_id"]), {})[str(sample.get("filter", "none"))] = sample
    evidence: dict[str, Array] = {}
    first = next(iter(rows.values()))
    for filtered, sample in first.items():
        for metric in sample.get("metrics", ()):
            key = metric if len(first) == 1 else f"{metric},{filtered}"
            column = _column(metric, [row[filtered].get(metric) for row in rows.values() if filtered in row])
            if column is not None and len(column) == len(rows):
                evidence[key] = column
    if not evidence:
        raise DataError(f"lm-evaluation-harness has no score of single samples for {task.task!r}")
    lines = [
        _line(task, name, next(iter(row.values())), next(iter(evidence.values()))[at])
        for at, ((name, _), row) in enumerate(rows.items())
    ]
    told = [
        f"{name}/{key} {value:.6g}"
        for name, scores in results.items()
        for key, value in scores.items()
        if isinstance(value, float) and "stderr" not in key
    ]
    return Outcome(lines, evidence, {"as_the_harness_says": "; ".join(told)})


def _column(metric: str, values: Sequence[Any]) -> Array | None:
    """Return the evidence of a metric: of numbers a mean, of log-likelihoods (maybe with words or bytes) a rate.

    None for others: f1 and mcc of the harness are pairs too, of a label and a choice, and no sums of single samples.
    """
    foretold = metric in OF_TEXTS
    if all(isinstance(value, bool | int | float | np.number) for value in values):
        return mean_of([-float(value) if foretold else float(value) for value in values])
    if foretold and all(isinstance(value, list | tuple) and len(value) == 2 for value in values):
        return np.asarray([[-float(one), float(other)] for one, other in values])
    return None


def _line(task: HarnessTask, name: str, sample: Mapping[str, Any], main: Array) -> dict[str, Any]:
    arguments = sample.get("arguments")
    return {
        "split": task.name,
        "id": digest_of([name, str(sample["doc_id"]), str(sample.get("doc_hash", ""))])[:24],
        "page": f"{name}:{sample['doc_id']}",
        "group": name,
        "question": _first_text(arguments),
        "answer": _shown(sample.get("filtered_resps")),
        "reference": _shown(sample.get("target")),
        "score": float(main[0] / main[1]) if main[1] else 0.0,
        "finish_reason": "stop",
    }


def _first_text(arguments: Any) -> str:
    while isinstance(arguments, list | tuple | dict) and arguments:
        arguments = next(iter(arguments.values())) if isinstance(arguments, dict) else arguments[0]
    return str(arguments)


def _shown(value: Any) -> str:
    while isinstance(value, list | tuple) and len(value) == 1:
        value = value[0]
    return str(value)
