"""Answers: ask a model every question of a conversation dataset and compare with the reference.

    conversations -> questions -> answers (Generator.generate, greedy) -> scorer -> report and samples.jsonl

Every question, answer and score is in the report's `samples.jsonl`: a number that nobody can look behind is no proof.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson
from pydantic import Field, field_validator

from catena.core.config import Config
from catena.core.errors import DataError, did_you_mean
from catena.core.generate import GENERATORS, SCORERS, Completion, Generator, Message, Request, SamplingParams, Scorer
from catena.core.sample import Sample
from catena.core.stage import Context, stage
from catena.core.types import DatasetVersion, ModelVersion, Report, Score
from catena.evaluate.ask import refuse_failed
from catena.evaluate.choice import chosen, known_generator, samples_of
from catena.evaluate.stats import mean_interval
from catena.hub.fields import need_shape


class AnswersConfig(Config):
    """What is asked, and how the answers are judged."""

    splits: tuple[str, ...] = Field(default=("test",), min_length=1)
    """Splits of the dataset; each gets its score `accuracy/<split>`."""
    scorer: str = "exact"
    """Name of the scorer that compares an answer with the reference."""
    max_tokens: int = Field(default=64, ge=1)
    """Longest answer, in tokens."""
    limit: int | None = Field(default=None, ge=1)
    """Questions of each split, chosen by hash; by default all."""
    generator: str = "native"
    """Who answers: the native engine, or another one by its name (vllm, llama.cpp, openai)."""
    engine: dict[str, Any] = Field(default_factory=dict)
    """Options of that engine, for example `url` and `model` of `openai`."""

    def modules(self) -> tuple[str, ...]:
        """Return where the scorer and the generator live: a plugin's too."""
        places = (SCORERS.table()[self.scorer], GENERATORS.table()[self.generator])
        return tuple(place.partition(":")[0] for place in places)

    @field_validator("generator")
    @classmethod
    def _answers(cls, name: str) -> str:
        return known_generator(name)

    @field_validator("scorer")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in SCORERS:
            raise ValueError(f"there is no scorer {name!r}. {did_you_mean(name, SCORERS)}")
        return name


@dataclass(frozen=True, slots=True)
class Question:
    """A conversation up to its last answer, and that answer."""

    id: str
    split: str
    messages: tuple[Message, ...]
    reference: str
    sample: Sample


@dataclass(frozen=True, slots=True)
class Answered:
    """One line of `samples.jsonl`."""

    split: str
    id: str
    """Of the sample in the dataset."""
    question: str
    answer: str
    reference: str
    score: float
    page: str
    """The document that the reference comes from."""
    finish_reason: str


@stage("evaluate.answers", uses=("catena.infer.engine", "catena.evaluate.scorers"))
def answers(ctx: Context, cfg: AnswersConfig, *, model: ModelVersion, data: DatasetVersion) -> Report:
    """Measure how often a model's answer is the right one, for each split."""
    need_shape(data, "conversation", what="data")
    questions = [
        question_of(sample, split)
        for split in cfg.splits
        for sample in chosen(samples_of(ctx.store, data, split), cfg.limit, ctx.seed)
    ]
    started = time.monotonic()
    params = SamplingParams(max_tokens=cfg.max_tokens)
    completions = ask(ctx.generator(model, cfg.generator, **cfg.engine), ctx, questions, params)
    ctx.events.metric("answers_per_second", round(len(questions) / max(time.monotonic() - started, 1e-9), 2))
    lines = judge(questions, completions, SCORERS.load(cfg.scorer))
    folder = ctx.workdir / "report"
    folder.mkdir(exist_ok=True)
    write_lines(folder / "samples.jsonl", lines)
    cut = sum(line.finish_reason == "length" for line in lines)
    return ctx.store.put_report(
        model,
        "answers",
        {f"accuracy/{split}": accuracy(lines, split, ctx.seed) for split in cfg.splits},
        details={
            "data": data.digest,
            "config": measured_by(cfg, ctx.seed),
            "generator": cfg.generator,
            "scorer": cfg.scorer,
            "questions": len(lines),
            "cut_at_max_tokens": cut,
            "interval": "95 %, Wilson (bootstrap where a score is neither 0 nor 1)",
        },
        folder=folder,
    )


def measured_by(cfg: AnswersConfig, seed: int) -> dict[str, Any]:
    """Return what decides the scores beside model and data; the seed does where it chooses the questions."""
    values = cfg.model_dump(mode="json", exclude={"generator", "engine"})  # these are how the model was run
    return {**values, "seed": seed if cfg.limit is not None else None}


def question_of(sample: Sample, split: str) -> Question:
    """Part a conversation into question and reference; raises `DataError` if it does not end with an answer."""
    *before, last = (Message(turn["role"], turn["content"]) for turn in sample.data["messages"])
    if last.role != "assistant" or not before:
        raise DataError(f"the conversation {sample.id} does not end with an answer to something")
    return Question(sample.id, split, tuple(before), last.content, sample)


def ask(
    generator: Generator, ctx: Context, questions: Sequence[Question], params: SamplingParams
) -> dict[int, Completion]:
    """Return the completion of each question by its number; the generator makes the batches, and is closed."""
    try:
        requests = [Request(str(number), question.messages, params) for number, question in enumerate(questions)]
        progress = ctx.progress("answers", len(requests), "answers")
        found = {}
        for completion in progress.over(generator.generate(requests)):
            refuse_failed(completion)
            found[int(completion.request_id)] = completion
    finally:
        generator.close()
    return found


def judge(questions: Sequence[Question], completions: dict[int, Completion], scorer: Scorer) -> list[Answered]:
    """Return each question with its answer and score, in the order of the questions."""
    lines = []
    for number, question in enumerate(questions):
        completion, metadata = completions[number], question.sample.metadata
        lines.append(
            Answered(
                split=question.split,
                id=question.id,
                question=question.messages[-1].content,
                answer=completion.text,
                reference=question.reference,
                score=scorer(completion.text, question.reference, metadata),
                page=str(metadata.get("page") or question.sample.source),
                finish_reason=completion.finish_reason,
            )
        )
    return lines


def accuracy(lines: Sequence[Answered], split: str, seed: int) -> Score:
    """Return the mean score of one split with its 95 % interval."""
    values = [line.score for line in lines if line.split == split]
    value, low, high = mean_interval(values, seed=seed)
    return Score(value=round(value, 6), low=round(low, 6), high=round(high, 6), n=len(values))


def write_lines(path: Path, lines: Sequence[Answered]) -> None:
    """Write one JSON object a line."""
    path.write_bytes(b"".join(orjson.dumps(asdict(line)) + b"\n" for line in lines))
