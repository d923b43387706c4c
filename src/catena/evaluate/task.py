"""Tasks as written in YAML: where the rows are, what is asked, how an answer is read and scored.

    kind: generate     prompt -> answer -> extract -> scores (exact, numeric, f1, bleu, ...)
    kind: choice       prompt -> log-likelihood of each choice -> acc, acc_norm
    kind: perplexity   text -> log-likelihood -> perplexity by token, word and byte
    kind: code         prompt -> program -> run in a sandbox -> pass@k
    kind: judge        prompt -> answer -> a judge's grade, or its choice of two
    kind: lm_eval      a task of lm-evaluation-harness by its name

Names and numbers stand in the file; what they mean is in `measures.py`, `kinds.py`, `sandbox.py`.
"""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from catena.core.config import Config
from catena.core.errors import did_you_mean
from catena.evaluate.made import MADE
from catena.evaluate.measures import OF_ANSWERS, OF_CHOICES, Normal
from catena.evaluate.template import Template

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def template(text: str) -> str:
    """Pass on a template that parses; raises `ValueError` otherwise, as a config's check does."""
    Template(text)
    return text


class DataConfig(Config):
    """Where rows come from: exactly one of file, dataset, rows and made."""

    file: str | None = None
    """A file (jsonl, json, csv, tsv, parquet, txt), or a pattern such as `test/*.csv`, beside the task's file or in the
    folder of `--data`. Each row also has `file`, the name of its file without ending."""
    columns: tuple[str, ...] = ()
    """Names of the columns of a csv or tsv file that has no line of names."""
    divide: str = ""
    """For txt: a regular expression of lines that begin a new row (a heading). Without it the file is one row."""
    dataset: str | None = None
    """A stored dataset: `name@tag`. Rows have the fields of its samples' data and metadata."""
    split: str = "test"
    """Of the stored dataset; `all` for one without splits."""
    rows: tuple[dict[str, Any], ...] = ()
    """The rows themselves."""
    made: str | None = None
    """A maker of rows: addition, copying, and others that need no file."""
    count: int = Field(default=100, ge=1, le=100_000)
    """Rows that the maker makes."""
    seed: int = 0
    """Seed of the maker."""

    @model_validator(mode="after")
    def _one_place(self) -> DataConfig:
        given = [name for name in ("file", "dataset", "rows", "made") if getattr(self, name)]
        if not given and "rows" in self.model_fields_set:
            raise ValueError("rows is empty: there is nothing to measure")
        if len(given) != 1:
            named = f", not {' and '.join(given)}" if given else ""
            raise ValueError(f"data has exactly one of file, dataset, rows and made{named}")
        if self.made and self.made not in MADE:
            raise ValueError(f"there is no maker {self.made!r}. {did_you_mean(self.made, MADE)}")
        _regex(self.divide)
        return self


class FewShotConfig(Config):
    """Solved examples in front of each question."""

    count: int = Field(ge=1, le=64)
    """How many."""
    data: DataConfig | None = None
    """Their own rows; by default those of the task, the question itself left out."""
    pick: Literal["first", "random", "each"] = "random"
    """The first ones; one draw for all questions (which the engine then reads once); or a draw for each question."""
    seed: int = 0
    """Seed of the draw."""
    between: str = "\n\n"
    """Stands after each example."""
    match: str = ""
    """A template: examples are those whose value is that of the question (its subject)."""

    @field_validator("match")
    @classmethod
    def _parses(cls, text: str) -> str:
        return template(text)


class ExtractStep(Config):
    """One step from the text of an answer to what is scored. Where nothing is found the answer scores 0."""

    regex: str = ""
    """Keep what matches: the first group that took part, or the whole match."""
    take: Literal["first", "last"] = "first"
    """Which match."""
    ignore_case: bool = False
    """For `regex`."""
    remove: str = ""
    """Take out whatever matches this regular expression."""
    until: str = ""
    """Keep what stands before this text."""
    strip: bool = False
    """Take off spaces at both ends."""
    lower: bool = False
    """Small letters."""
    map: dict[str, str] = Field(default_factory=dict)
    """Replace one text by another: `{yes: A}`; others stay."""

    @model_validator(mode="after")
    def _does_something(self) -> ExtractStep:
        if not any((self.regex, self.remove, self.until, self.strip, self.lower, self.map)):
            raise ValueError("a step of extract needs one of regex, remove, until, strip, lower, map")
        _regex(self.regex)
        _regex(self.remove)
        return self


def _regex(pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"the regular expression {pattern!r} does not parse: {error}") from error


class TaskBase(Config):
    """What every task has."""

    name: str
    """What scores are called: `name/exact`."""
    description: str = ""
    """What it measures."""
    source: str = ""
    """Where its files come from."""
    license: str = ""
    """Of its data."""
    language: Literal["en", "zh", ""] = ""
    """Decides how texts are cut into words: zh by characters."""
    data: DataConfig
    group: str = ""
    """A template: each value gets scores of its own (`name/exact/<value>`): a subject, a level."""
    cluster: str = ""
    """A template: rows with the same value hang together (questions about one text), and are drawn together for
    confidence intervals."""

    @field_validator("name")
    @classmethod
    def _is_a_name(cls, name: str) -> str:
        if not NAME.fullmatch(name):
            raise ValueError("a name has letters, digits, '.', '_' and '-'")
        return name

    @field_validator("group", "cluster")
    @classmethod
    def _parses(cls, text: str) -> str:
        return template(text)


class Prompted(TaskBase):
    """What a task with a prompt has."""

    prompt: str
    """A template of the question."""
    preamble: str = ""
    """Text before everything, examples too; the system message of a conversation."""
    few_shot: FewShotConfig | None = None
    """Solved examples in front of each question."""
    delimiter: str = " "
    """Stands between a question and its answer, in examples and for choices."""
    chat: bool = False
    """Ask through the model's chat template: examples become turns."""

    @field_validator("prompt")
    @classmethod
    def _prompt_parses(cls, text: str) -> str:
        return template(text)


class Answered(Prompted):
    """What a task with written answers has."""

    max_tokens: int = Field(default=128, ge=1)
    """Longest answer, in tokens."""
    stop: tuple[str, ...] = ()
    """Texts that end an answer."""
    temperature: float = Field(default=0.0, ge=0)
    """0 takes the likeliest token."""
    extract: tuple[ExtractStep, ...] = ()
    """From the text of an answer to what is scored, step by step."""


class GenerateTask(Answered):
    """Answers are written, and compared with references."""

    kind: Literal["generate"]
    answer: str
    """A template of the reference; one expression that gives a list has several, of which the best counts."""
    score: tuple[str, ...] = Field(default=("exact",), min_length=1)
    """How answers are compared: exact, verbatim, contains, numeric, token_f1, bleu, chrf, rouge1, rouge2, rougeL,
    f1_macro, f1_micro."""
    normal: tuple[Normal, ...] = ()
    """What does not count in exact, contains and token_f1: case, punctuation, articles."""

    @field_validator("answer")
    @classmethod
    def _answer_parses(cls, text: str) -> str:
        return template(text)

    @field_validator("score")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return known(names, OF_ANSWERS)


class ChoiceTask(Prompted):
    """The likeliest of some given answers is taken."""

    kind: Literal["choice"]
    choices: str | tuple[str, ...]
    """Templates of the choices, or one expression that gives a list."""
    correct: str
    """An expression: the number of the right choice (from 0), its text, or its letter (A is the first)."""
    score: tuple[str, ...] = Field(default=("acc", "acc_norm"), min_length=1)
    """acc takes the likeliest, acc_norm the likeliest for its length in bytes; f1_macro, f1_micro of acc's."""

    @field_validator("choices")
    @classmethod
    def _choices_parse(cls, given: str | tuple[str, ...]) -> str | tuple[str, ...]:
        for text in (given,) if isinstance(given, str) else given:
            template(text)
        return given

    @field_validator("correct")
    @classmethod
    def _correct_parses(cls, text: str) -> str:
        return template(text)

    @field_validator("score")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return known(names, OF_CHOICES)


class PerplexityTask(TaskBase):
    """How well texts are foretold; each token once, in windows of the model's context."""

    kind: Literal["perplexity"]
    text: str = "{{ text }}"
    """A template of the text that is scored."""
    counted: str = ""
    """A template of the text whose words and bytes are counted, where it is another (before it was tokenised)."""
    window: int | None = Field(default=None, ge=2)
    """Tokens that the model sees at once; by default its whole context."""

    @field_validator("text", "counted")
    @classmethod
    def _text_parses(cls, text: str) -> str:
        return template(text)


class LimitsConfig(Config):
    """What a program may use."""

    seconds: float = Field(default=10.0, gt=0, le=600)
    """Time, on the wall and of the processor."""
    memory_mb: int = Field(default=512, ge=32)
    """Memory of all its processes together."""
    processes: int = Field(default=16, ge=1, le=1024)
    """Processes and threads at once."""
    file_mb: int = Field(default=16, ge=1)
    """What it may write to its folder, which is in memory and gone afterwards."""


class CodeTask(Answered):
    """Programs are written and run."""

    kind: Literal["code"]
    program: str
    """A template of the whole program in Python, with `completion` for the answer. It has passed if it ends by itself
    without an error."""
    samples: int = Field(default=1, ge=1, le=200)
    """Answers to each question; more than one needs a temperature."""
    k: tuple[int, ...] = Field(default=(1,), min_length=1)
    """pass@k for each of these."""
    limits: LimitsConfig = LimitsConfig()
    """What a program may use."""

    @field_validator("program")
    @classmethod
    def _program_parses(cls, text: str) -> str:
        return template(text)

    @model_validator(mode="after")
    def _enough(self) -> CodeTask:
        if self.few_shot is not None:
            raise ValueError("a task of the kind code has no few_shot: write examples into its preamble")
        if max(self.k) > self.samples or min(self.k) < 1:
            raise ValueError(f"pass@k needs at least k samples, and k at least 1: {self.samples} samples, k {self.k}")
        if self.samples > 1 and not self.temperature:
            raise ValueError("several samples at temperature 0 are all the same")
        return self


class JudgeTask(Answered):
    """Another model says how good an answer is, or which of two is better (asked twice, with the places swapped)."""

    kind: Literal["judge"]
    reference: str = ""
    """A template of a good answer, shown to the judge as such where it is graded alone."""
    against: str = ""
    """A template of the other answer; with it the judge chooses, without it the judge grades."""
    question: str = ""
    """A template of what the judge sees as the question; by default the prompt."""
    criteria: str = "helpfulness, correctness and clarity"
    """What the judge is to look at."""
    judge_tokens: int = Field(default=512, ge=1)
    """Longest ruling, in tokens."""
    top: int = Field(default=10, ge=2, le=100)
    """Best grade; the worst is 1. The score is the grade's place between the two."""

    @model_validator(mode="after")
    def _no_examples(self) -> JudgeTask:
        if self.few_shot is not None:
            raise ValueError("a task of the kind judge has no few_shot: write examples into its preamble")
        return self

    @field_validator("reference", "against", "question")
    @classmethod
    def _templates_parse(cls, text: str) -> str:
        return template(text)


class HarnessTask(TaskBase):
    """A task of lm-evaluation-harness, which asks and scores it by itself."""

    kind: Literal["lm_eval"]
    task: str
    """Its name there; a group's name too."""
    include: str = ""
    """A folder with further task files of the harness."""
    num_fewshot: int | None = Field(default=None, ge=0)
    """Examples, where not as the task says."""
    data: DataConfig = DataConfig(rows=({"read by": "lm-evaluation-harness"},))
    """Not to be given: the harness reads its own."""


Task = GenerateTask | ChoiceTask | PerplexityTask | CodeTask | JudgeTask | HarnessTask
KINDS: dict[str, type[Task]] = {
    "generate": GenerateTask,
    "choice": ChoiceTask,
    "perplexity": PerplexityTask,
    "code": CodeTask,
    "judge": JudgeTask,
    "lm_eval": HarnessTask,
}


class Suite(Config):
    """Several tasks under one name."""

    name: str
    """Name of the suite."""
    suite: tuple[str, ...] = Field(min_length=1)
    """Names of shipped tasks, or files beside this one."""
    description: str = ""
    """What it is for."""


def known(names: tuple[str, ...], table: Any) -> tuple[str, ...]:
    """Pass on names that stand in a table; raises `ValueError` otherwise."""
    for name in names:
        if name not in table:
            raise ValueError(f"there is no score {name!r}. {did_you_mean(name, table)}")
    return names
