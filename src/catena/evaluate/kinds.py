"""What a task of each kind asks, and what its answers come to: lines to look at, and evidence to add up.

rows -> prompts -> Asker -> answers -> Outcome(lines, evidence by measure)
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from catena.core.digest import digest_of
from catena.core.errors import DataError, UsageError
from catena.core.generate import SamplingParams
from catena.evaluate.ask import Asker, Prompt, cut_windows
from catena.evaluate.extract import Extractor
from catena.evaluate.measures import OF_ANSWERS, OF_CHOICES, Array, Manner, Pair, mean_of
from catena.evaluate.outcome import Line, Outcome
from catena.evaluate.prompts import Prompter
from catena.evaluate.rows import Row
from catena.evaluate.sandbox import Sandbox, Verdict, pass_at_k, run_all
from catena.evaluate.task import (
    Answered,
    ChoiceTask,
    CodeTask,
    GenerateTask,
    HarnessTask,
    JudgeTask,
    PerplexityTask,
    Task,
)
from catena.evaluate.template import Template


@dataclass(frozen=True)
class Run:
    """All that a kind needs beside its task and rows."""

    asker: Asker
    seed: int
    pool: Sequence[Row]
    """Rows of examples."""
    own: bool
    """Whether these are the task's own rows."""
    chat: bool
    judge: Asker | None = None
    sandbox: Sandbox | None = None
    limit: int | None = None
    """At most so many rows, for who reads them by himself."""


def perform(task: Task, rows: Sequence[Row], run: Run) -> Outcome:
    """Ask and score all rows of a task."""
    kinds: Mapping[type[Any], Callable[[Any, Sequence[Row], Run], Outcome]] = {
        GenerateTask: generate,
        ChoiceTask: choose,
        PerplexityTask: foretell,
        CodeTask: program,
        JudgeTask: judged,
        HarnessTask: harness,
    }
    return kinds[type(task)](task, rows, run)


def shown(prompt: Prompt) -> str:
    """Return a prompt as a person reads it."""
    if isinstance(prompt, str):
        return prompt
    return "\n\n".join(f"[{turn.role}] {turn.content}" for turn in prompt)


def line_of(task: Task, row: Row, **fields: Any) -> Line:
    """Return a line of `samples.jsonl`, with the names that all evaluations use."""
    return {"split": task.name, "id": row.id, "page": row.where, **fields}


def params_of(task: Answered, seed: int, sample: int, row: Row) -> SamplingParams:
    """Return how answers are sampled: the same for the same row and seed."""
    drawn = int(digest_of([seed, row.id, sample])[:12], 16) if task.temperature else None
    return SamplingParams(max_tokens=task.max_tokens, temperature=task.temperature, stop=task.stop, seed=drawn)


def generate(task: GenerateTask, rows: Sequence[Row], run: Run) -> Outcome:
    """Write answers, read what is to be scored out of them, and compare."""
    prompter = Prompter(task, run.pool, own=run.own, chat=run.chat)
    prompts = [prompter(row) for row in rows]
    references = [prompter.references(row) for row in rows]
    asked = [(prompt, params_of(task, run.seed, 0, row)) for prompt, row in zip(prompts, rows, strict=True)]
    written = run.asker.write(asked, task.name)
    extract = Extractor(task.extract)
    pairs = [
        Pair(extract(answer.text), wanted, row.values)
        for answer, wanted, row in zip(written, references, rows, strict=True)
    ]
    manner = Manner(task.language, task.normal, tuple(sorted({wanted[0] for wanted in references})))
    evidence = {name: OF_ANSWERS[name].evidence(pairs, manner) for name in task.score}
    first = evidence[task.score[0]]
    lines = [
        line_of(
            task,
            row,
            question=shown(prompt),
            answer=answer.text,
            extracted=pair.answer,
            reference=" | ".join(pair.references),
            score=_line_score(task.score[0], numbers, pair),
            finish_reason=answer.finish_reason,
        )
        for row, prompt, answer, pair, numbers in zip(rows, prompts, written, pairs, first, strict=True)
    ]
    return Outcome(lines, evidence, _notes(extract, lines))


def _line_score(name: str, numbers: Array, pair: Pair) -> float:
    """Return what one line shows: its own score where it has one, else whether the answer is the reference."""
    if len(numbers) == 2:
        return float(numbers[0])
    if name in ("bleu", "chrf"):
        return float(OF_ANSWERS[name].finish(numbers[None])[0]) / 100
    return float(pair.answer in pair.references)


def _notes(extract: Extractor, lines: Sequence[Line]) -> dict[str, Any]:
    cut = sum(line["finish_reason"] == "length" for line in lines)
    notes = {"not_extracted": extract.nothing, "extraction_too_slow": extract.late, "cut_at_max_tokens": cut}
    return {name: count for name, count in notes.items() if count}


def choose(task: ChoiceTask, rows: Sequence[Row], run: Run) -> Outcome:
    """Take the likeliest choice: by its log-likelihood, or by that for each character or byte."""
    prompter = Prompter(task, run.pool, own=run.own, chat=run.chat)
    assert prompter.choices is not None
    prompts = [prompter(row) for row in rows]
    choices = [prompter.choices(row) for row in rows]
    asked = [
        [(prompt, text if run.chat else task.delimiter + text) for text in one.texts]
        for prompt, one in zip(prompts, choices, strict=True)
    ]
    told = run.asker.likelihoods(asked, task.name)
    taken: dict[str, list[int]] = {"acc": [], "acc_norm": [], "acc_bytes": []}
    for one, scores in zip(choices, told, strict=True):
        sums = np.asarray([score.logprob for score in scores])
        taken["acc"].append(int(np.argmax(sums)))
        taken["acc_norm"].append(int(np.argmax(sums / np.asarray([float(len(text) or 1) for text in one.texts]))))
        taken["acc_bytes"].append(int(np.argmax(sums / np.asarray([len(text.encode()) or 1 for text in one.texts]))))
    pairs = [Pair(one.texts[at], (one.texts[one.correct],)) for one, at in zip(choices, taken["acc"], strict=True)]
    manner = Manner(task.language, (), tuple(sorted({pair.references[0] for pair in pairs})))
    evidence = {
        name: mean_of([float(at == one.correct) for one, at in zip(choices, taken[name], strict=True)])
        if name in taken
        else OF_CHOICES[name].evidence(pairs, manner)
        for name in task.score
    }
    main = taken.get(task.score[0], taken["acc"])
    lines = [
        line_of(
            task,
            row,
            question=shown(prompt),
            answer=one.texts[at],
            reference=one.texts[one.correct],
            score=float(at == one.correct),
            choices=[[text, round(score.logprob, 4)] for text, score in zip(one.texts, scores, strict=True)],
            finish_reason="stop",
        )
        for row, prompt, one, at, scores in zip(rows, prompts, choices, main, told, strict=True)
    ]
    return Outcome(lines, evidence)


def foretell(task: PerplexityTask, rows: Sequence[Row], run: Run) -> Outcome:
    """Add up the log-likelihoods of texts; words and bytes are counted in the text as it was."""
    window = task.window or run.asker.context or 1024
    if run.asker.context and window > run.asker.context:
        raise UsageError(f"{task.name}: the window of {window} tokens is more than the context of {run.asker.context}")
    text, counted = Template(task.text), Template(task.counted or task.text)
    texts = [text.text_of(row.values, row.where) for row in rows]
    originals = [counted.text_of(row.values, row.where) for row in rows]
    start = list(run.asker.start[:1])
    cuts = []
    for one in texts:
        ids = [*start, *(run.asker.codec.continuation(one) if one else [])]
        cuts.append(
            [(ids[a:end], first - a) for a, first, end in cut_windows(len(ids) - len(start), window, len(start))]
        )
    if not any(cuts):
        raise DataError(f"{task.name}: there is no token to foretell", hint="Its texts are empty.")
    told = run.asker.windows(cuts, task.name)
    nats = np.asarray([-sum(piece.logprob for piece in pieces) for pieces in told])
    tokens = np.asarray([float(sum(piece.tokens for piece in pieces)) for pieces in told])
    words = np.asarray([float(len(re.split(r"\s+", one))) for one in originals])
    sizes = np.asarray([float(len(one.encode())) for one in originals])
    by_byte = np.stack([nats, sizes], axis=1)
    evidence = {
        "perplexity": np.stack([nats, tokens], axis=1),
        "word_perplexity": np.stack([nats, words], axis=1),
        "byte_perplexity": by_byte,
        "bits_per_byte": by_byte,
    }
    lines = [
        line_of(task, row, text=one, tokens=int(count), nats=round(float(cost), 4), perplexity=_perplexity(cost, count))
        for row, one, count, cost in zip(rows, texts, tokens, nats, strict=True)
    ]
    return Outcome(lines, evidence, {"window": window})


def _perplexity(nats: float, tokens: float) -> float:
    return round(math.exp(min(nats / max(tokens, 1), 700.0)), 4)


def program(task: CodeTask, rows: Sequence[Row], run: Run) -> Outcome:
    """Let programs be written, run each in the sandbox, and tell how often one of k passes."""
    assert run.sandbox is not None
    run.sandbox.check()  # before a model is asked for what cannot be run
    prompter = Prompter(task, (), own=False, chat=run.chat)
    prompts = [prompter(row) for row in rows]
    asked = [
        (prompt, params_of(task, run.seed, sample, row))
        for prompt, row in zip(prompts, rows, strict=True)
        for sample in range(task.samples)
    ]
    written = run.asker.write(asked, task.name)
    extract, whole = Extractor(task.extract), Template(task.program)
    owners = [row for row in rows for _ in range(task.samples)]
    programs = []
    for row, answer in zip(owners, written, strict=True):
        read = extract(answer.text)
        programs.append(None if read is None else whole.text_of({**row.values, "completion": read}, row.where))
    progress = run.asker.events.progress(f"{task.name}: programs", len(programs), "programs")
    verdicts = run_all(run.sandbox, programs, task.limits, progress.advance)
    progress.finish()
    grouped = [verdicts[at : at + task.samples] for at in range(0, len(verdicts), task.samples)]
    passed = [sum(verdict.passed for verdict in group) for group in grouped]
    evidence = {f"pass@{k}": mean_of([pass_at_k(task.samples, c, k) for c in passed]) for k in task.k}
    lines = []
    for number, (row, prompt, group) in enumerate(zip(rows, prompts, grouped, strict=True)):
        verdict = _telling(group)
        answer = written[number * task.samples]
        lines.append(
            line_of(
                task,
                row,
                question=shown(prompt),
                answer=answer.text,
                reference=f"{passed[number]} of {task.samples} passed",
                score=passed[number] / task.samples,
                outcome=verdict.reason,
                output=verdict.output,
                finish_reason=answer.finish_reason,
            )
        )
    reasons = [verdict.reason for verdict in verdicts]
    counted = {f"programs_{name}": reasons.count(name) for name in sorted(set(reasons))}
    return Outcome(lines, evidence, {**_notes(extract, lines), **counted, "sandbox": run.sandbox.describe()})


def _telling(group: Sequence[Verdict]) -> Verdict:
    return next((verdict for verdict in group if not verdict.passed), group[0])


def judged(task: JudgeTask, rows: Sequence[Row], run: Run) -> Outcome:
    """Let answers be written, and a judge grade each or choose between two."""
    from catena.evaluate.judge import choose_between, grade

    if run.judge is None:
        raise UsageError(
            f"the task {task.name!r} needs a judge",
            hint="Give a stored model or a URL: --judge NAME, or --judge http://host:8000/v1#MODEL.",
        )
    prompter = Prompter(task, (), own=False, chat=run.chat)
    prompts = [prompter(row) for row in rows]
    asked = [(prompt, params_of(task, run.seed, 0, row)) for prompt, row in zip(prompts, rows, strict=True)]
    written = run.asker.write(asked, task.name)
    extract = Extractor(task.extract)
    answers = [extract(answer.text) or "" for answer in written]
    question = Template(task.question or task.prompt)
    questions = [question.text_of(row.values, row.where) for row in rows]
    other = Template(task.against or task.reference)
    others = [other.text_of(row.values, row.where) for row in rows]
    decide = choose_between if task.against else grade
    rulings = decide(run.judge, task, list(zip(questions, answers, others, strict=True)))
    lines = [
        line_of(
            task,
            row,
            question=shown(prompt),
            answer=answer.text,
            reference=second,
            score=ruling.score,
            ruling=ruling.said,
            finish_reason=answer.finish_reason,
        )
        for row, prompt, answer, second, ruling in zip(rows, prompts, written, others, rulings, strict=True)
    ]
    name = "win_rate" if task.against else "grade"
    unread = sum(ruling.unread for ruling in rulings)
    notes = {**_notes(extract, lines), **({"rulings_unread": unread} if unread else {})}
    return Outcome(lines, {name: mean_of([ruling.score for ruling in rulings])}, notes)


def harness(task: HarnessTask, rows: Sequence[Row], run: Run) -> Outcome:
    """Let lm-evaluation-harness perform one of its tasks."""
    from catena.evaluate.harness import run_harness

    return run_harness(task, run.asker, run.limit, run.seed)
