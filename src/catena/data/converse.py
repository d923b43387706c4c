"""`data.converse`: conversations from labelled examples: a question about the input, and the output as its answer.

    examples -> train                 levels 0 (fixed templates), 1 and up (grammar, with noise)
             -> held_out_phrasings    templates that training never has, of words that it has
             -> unseen_words          templates with words that training never has

The stage proves what it claims: a kept question in training, or a wrong claim about words, is an error.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BeforeValidator, Field

from catena.core.config import Config, parse
from catena.core.errors import CatenaError, DataError, did_you_mean
from catena.core.sample import Sample
from catena.core.stage import Context, stage
from catena.core.types import DatasetVersion
from catena.data.questions import (
    Asker,
    Noise,
    Phrasings,
    Question,
    check_questions,
    check_templates,
    noise_words,
    plain,
)
from catena.hub.fields import need_shape

SHIPPED = Path(__file__).parent / "phrasings"
TRIES = 20
"""How often a question that a definition has already is made anew before the definition gets one less."""


def load_phrasings(value: Any) -> Any:
    """Return the phrasings of a shipped file's name, or of a path to a YAML file; a mapping is passed on.

    The whole content becomes part of the config, so that a changed file is a changed step.
    """
    if not isinstance(value, str):
        return value
    path = Path(value) if "/" in value or value.endswith((".yaml", ".yml")) else SHIPPED / f"{value}.yaml"
    try:
        return parse(Phrasings, yaml.safe_load(path.read_text(encoding="utf-8")) or {}, where=path.name)
    except OSError:
        known = [file.stem for file in SHIPPED.glob("*.yaml")]
        raise ValueError(f"there is no file of phrasings {value!r}. {did_you_mean(value, known)}".rstrip(".")) from None
    except (CatenaError, yaml.YAMLError, UnicodeDecodeError, TypeError) as error:
        raise ValueError(str(error)) from error


class ConverseConfig(Config):
    phrasings: Annotated[Phrasings | str, BeforeValidator(load_phrasings)] = Field("definitions", validate_default=True)
    """A file of questions that comes with Catena (`definitions`), a path to one's own, or the mapping itself."""
    per_level: dict[int, int] = Field(default_factory=lambda: {0: 6, 1: 24})
    """How many questions each definition gets at each level; level 0 takes the first fixed templates."""
    held_out_per_definition: int = Field(2, ge=0)
    """Questions for evaluation from held-out phrasings."""
    unseen_words_per_definition: int = Field(2, ge=0)
    """Questions for evaluation from phrasings with unseen words."""
    noise: Noise = Field(default_factory=Noise)
    """Words put in, exchanged and left out."""

    @property
    def templates(self) -> Phrasings:
        """The phrasings: the validator has put them in the place of their file's name."""
        assert isinstance(self.phrasings, Phrasings)
        return self.phrasings


def training_questions(names: Sequence[str], cfg: ConverseConfig, asker: Asker) -> Iterator[tuple[int, int, Question]]:
    """Yield (level, place of the name, question), level after level; no name is asked the same twice at one level."""
    for level, count in sorted(cfg.per_level.items()):
        for place in range(len(names)):
            if level == 0:
                fixed = enumerate(cfg.templates.fixed[:count])
                yield from ((0, place, Question(text, f"fixed/{number}")) for number, text in fixed)
                continue
            asked: set[str] = set()
            for _ in range(count):
                for _ in range(TRIES):
                    question = asker.ask(level)
                    if question.text not in asked:
                        asked.add(question.text)
                        yield level, place, question
                        break


def kept_questions(
    names: Sequence[str], templates: Sequence[str], count: int, label: str
) -> Iterator[tuple[int, Question]]:
    """Yield (place of the name, question) of phrasings kept for evaluation, each phrasing as often as the others."""
    count = min(count, len(templates))
    for place in range(len(names)):
        for number in range(count):
            chosen = (place * count + number) % len(templates)
            yield place, Question(templates[chosen], f"{label}/{chosen}")


def conversation(definition: Sample, question: Question, split: str, level: int | None = None) -> Sample:
    """Return the conversation of one question; its parent is the definition, whose parent is the page."""
    name = str(definition.data["input"])
    messages = [
        {"role": "user", "content": question.about(name)},
        {"role": "assistant", "content": str(definition.data["output"])},
    ]
    metadata: dict[str, Any] = {
        "name": name,
        "page": definition.metadata.get("page", definition.source),
        "page_id": definition.parents[0] if definition.parents else "",
        "template": question.template,
    }
    if level is not None:
        metadata["level"] = level
    made = definition.derive({"messages": messages}, key=f"{split}/{level}/{question.template}", metadata=metadata)
    return replace(made, split=split)


def _kept(names: Sequence[str], cfg: ConverseConfig) -> dict[str, list[tuple[int, Question]]]:
    phrasings = cfg.templates
    held, unseen = cfg.held_out_per_definition, cfg.unseen_words_per_definition
    return {
        "held_out_phrasings": list(kept_questions(names, phrasings.held_out, held, "held_out")),
        "unseen_words": list(kept_questions(names, phrasings.unseen_words, unseen, "unseen_words")),
    }


def _by_template(kept: Mapping[str, list[tuple[int, Question]]], names: Sequence[str]) -> dict[str, list[str]]:
    asked: dict[str, list[str]] = {}
    for questions in kept.values():
        for place, question in questions:
            asked.setdefault(question.text, []).append(question.about(names[place]))
    return asked


@stage("data.converse")
def converse(
    ctx: Context, cfg: ConverseConfig, *, source: DatasetVersion, corpus: DatasetVersion | None = None
) -> DatasetVersion:
    """Make questions and answers from labelled examples, some phrasings kept for evaluation.

    The words of the noise come from the documents of `corpus`, or from the answers without one.
    """
    need_shape(source, "example")
    if corpus is not None:
        need_shape(corpus, "document", what="corpus")
    examples = list(ctx.store.open_dataset(source).samples())
    if not examples:
        raise DataError("there is no example to ask about", hint="`catena show` lists what was rejected, and why.")
    check_templates(cfg.templates)
    names = [str(example.data["input"]) for example in examples]
    if corpus is None:
        texts = (str(example.data["output"]) for example in examples)
    else:
        texts = (document.text for document in ctx.store.open_dataset(corpus).samples())
    asker = Asker(cfg.templates, cfg.noise, noise_words(texts, cfg.templates), f"{ctx.seed}/converse")
    progress = ctx.progress("Questions", len(examples) * sum(cfg.per_level.values()), "questions")
    trained: list[str] = []
    with ctx.store.new_dataset("conversation", license=source.license) as out:
        for level, place, question in progress.over(training_questions(names, cfg, asker)):
            trained.append(question.about(names[place]))
            out.add(conversation(examples[place], question, "train", level))
        kept = _kept(names, cfg)
        check_questions(trained, _by_template(kept, names), cfg.templates)
        for split, questions in kept.items():
            for place, question in questions:
                out.add(conversation(examples[place], question, split))
        facts = {"definitions": len(examples), "training_questions": len(set(map(plain, trained)))}
        return out.commit(rows_in=len(examples), profile=facts)
