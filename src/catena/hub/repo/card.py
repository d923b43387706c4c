"""Cards: a README with the metadata that hubs read, written from what the store knows and from nothing else.

front matter   licence, library, tags, base model, datasets, scores (as `model-index`), files of each split
body           what it is, how it was made (every run, back to the first), data and licences, scores, change log

The body is in English or Chinese (`card_words.yaml`); the metadata is the same.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any, Protocol

import yaml

from catena.core.language import Language
from catena.core.types import Artifact, DatasetVersion, ModelVersion, Report, Run
from catena.hub.repo.exports import split_word
from catena.hub.store import Store

FRONT = re.compile(r"\A---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
LONGEST_FRONT = 1 << 20
MOST_VALUES, DEEPEST = 100_000, 64
"""Of a card's metadata. A few hundred bytes of YAML can stand for more values than a computer has room for."""
REPO_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?")
SIMPLE_LICENSE = re.compile(r"[A-Za-z0-9.+-]+")
SHOWN_CONFIG = 12
SHOWN_LOG = 50
WORDS = Path(__file__).with_name("card_words.yaml")


class Say(Protocol):
    """Words in one language."""

    def __call__(self, key: str, **values: Any) -> str:
        """Return a word, with `{name}` replaced."""


@dataclass(frozen=True, slots=True)
class Told:
    """What the store knows of all its artifacts, read once for many cards."""

    names: Mapping[str, str]
    """Digest to the newest `name@version`."""
    reports: Mapping[str, Sequence[Report]] = field(default_factory=dict)
    """Digest of what was measured to the reports on it."""


def read_told(store: Store) -> Told:
    """Read names and reports."""
    names = {row.digest: f"{row.name}@{row.version}" for row in store.index.versions()}
    reports: dict[str, list[Report]] = {}
    for artifact in store.index.all_artifacts():
        if isinstance(artifact, Report):
            reports.setdefault(artifact.subject, []).append(artifact)
    return Told(names, reports)


def card(store: Store, artifact: Artifact, name: str, told: Told | None = None, *, language: Language = "en") -> str:
    """Return the README of a model or a dataset version under a name."""
    say = _words(language)
    known = told or read_told(store)
    runs = _history(store, artifact)
    reports = known.reports.get(artifact.digest, ())
    facts = _front(artifact, name, runs, reports, known)
    parts = [f"---\n{yaml.safe_dump(facts, sort_keys=False, allow_unicode=True)}---\n", f"# {name}\n"]
    parts += [_what(say, artifact), _made(say, runs, known), _data(say, store, artifact, runs, known)]
    parts += [_scores(say, reports), _log(say, store, name, artifact.kind)]
    return "\n".join(part for part in parts if part)


def front_matter(text: str) -> dict[str, Any]:
    """Read the metadata of a card, as JSON can hold it; nothing where there is none, or it is broken or too much."""
    found = FRONT.match(text)
    if found is None or len(found[1]) > LONGEST_FRONT:
        return {}
    try:
        facts = _plain(yaml.safe_load(found[1]), count())
    except Exception:  # noqa: BLE001  of a value that is none of its type PyYAML lets any error through
        return {}
    return facts if isinstance(facts, dict) else {}


def _plain(value: Any, counted: Iterator[int], depth: int = 0) -> Any:
    if next(counted) > MOST_VALUES or depth > DEEPEST:
        raise ValueError("more than a card can tell")
    if isinstance(value, Mapping):
        return {_text(key): _plain(item, counted, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, counted, depth + 1) for item in value]
    if value is None or isinstance(value, bool) or (isinstance(value, int) and value.bit_length() <= 64):
        return value
    if isinstance(value, int | float):
        return value if isinstance(value, float) and math.isfinite(value) else None
    return _text(value)


def _text(value: Any) -> str:
    return str(value).encode("utf-8", "replace").decode()


def license_of(facts: Mapping[str, Any]) -> str | None:
    """Return the licence that a card's metadata names."""
    named = facts.get("license")
    if named == "other":
        named = facts.get("license_name") or "other"
    if isinstance(named, list):
        named = " AND ".join(map(str, named))
    return None if named is None else str(named)


@cache
def _words(language: Language) -> Say:
    words: Mapping[str, Mapping[str, str]] = yaml.safe_load(WORDS.read_text(encoding="utf-8"))

    def say(key: str, **values: Any) -> str:
        return words[key][language].format_map(values)

    return say


def _history(store: Store, artifact: Artifact) -> list[Run]:
    """Return the runs that led to an artifact, the first ones first."""
    found: dict[str, Run] = {}
    waiting, seen = [artifact.digest], {artifact.digest}
    while waiting:
        digest = waiting.pop()
        makers = [
            run for run in store.index.find_runs(output=digest, status="done") if digest not in run.inputs.values()
        ]
        for run in makers[-1:]:
            found[run.id] = run
            fresh = [given for given in run.inputs.values() if given not in seen]
            seen.update(fresh)
            waiting.extend(fresh)
    return sorted(found.values(), key=lambda run: (run.started.timestamp() if run.started else 0.0, run.id))


def _front(artifact: Artifact, name: str, runs: Sequence[Run], reports: Iterable[Report], told: Told) -> dict[str, Any]:
    facts: dict[str, Any] = dict(_license(artifact.license))
    tags = ["catena"]
    if isinstance(artifact, ModelVersion):
        library = {"adapter": "peft", "gguf": "gguf", "onnx": "onnx"}.get(artifact.form, "transformers")
        facts["library_name"] = library
        tags += [artifact.form] if artifact.form != "full" else []
        tags += [artifact.quantization] if artifact.quantization else []
        if "CausalLM" in artifact.architecture:
            facts["pipeline_tag"] = "text-generation"
        base = _repo(told.names.get(artifact.base or "", ""))
        facts |= {"base_model": base} if base else {}
        made = {run.output for run in runs} | {digest for run in runs for digest in run.inputs.values()}
        data = [digest for digest in made if digest in told.names]
        own = {run.stage for run in runs if run.output == artifact.digest}
        direct = [digest for run in runs if run.stage in own for digest in run.inputs.values()]
        named = sorted({_repo(told.names.get(digest, "")) for digest in direct} - {"", base, name})
        facts |= {"datasets": named} if named and data else {}
        results = _results(reports)
        facts |= {"model-index": [{"name": name, "results": results}]} if results else {}
    if isinstance(artifact, DatasetVersion):
        tags += [artifact.shape]
        splits = sorted({split_word(split) for split in artifact.splits} or {"train"})
        files = [{"split": split, "path": f"data/{split}-*.parquet"} for split in splits]
        facts["configs"] = [{"config_name": "default", "data_files": files}]
    return {**facts, "tags": tags}


def _license(license: str | None) -> dict[str, str]:
    if not license:
        return {}
    if SIMPLE_LICENSE.fullmatch(license):
        return {"license": license.lower()}
    return {"license": "other", "license_name": license}


def _repo(ref: str) -> str:
    name = ref.partition("@")[0]
    return name if REPO_NAME.fullmatch(name) else ""


def _results(reports: Iterable[Report]) -> list[dict[str, Any]]:
    found = []
    for report in reports:
        metrics = [{"type": name, "name": name, "value": round(item.value, 6)} for name, item in report.scores.items()]
        suite = {"type": report.suite, "name": report.suite}
        if metrics:
            found.append({"task": {"type": "text-generation"}, "dataset": suite, "metrics": metrics})
    return found


def _what(say: Say, artifact: Artifact) -> str:
    rows: list[tuple[str, Any]] = []
    if isinstance(artifact, ModelVersion):
        rows = [
            (say("form"), artifact.form),
            (say("architecture"), artifact.architecture),
            (say("parameters"), f"{artifact.parameters:,}" if artifact.parameters else ""),
            (say("number_format"), artifact.quantization or artifact.dtype),
            (say("longest"), say("tokens", n=f"{artifact.context:,}") if artifact.context else ""),
            (say("size"), f"{artifact.size / 1e6:,.2f} MB"),
        ]
    if isinstance(artifact, DatasetVersion):
        rows = [(say("shape"), artifact.shape), (say("rows"), f"{artifact.rows:,}")]
        rows += [(say("rejects"), f"{artifact.rejects:,}")]
        rows += [
            (say("split", name=name), say("split_rows", n=f"{split.rows:,}")) for name, split in artifact.splits.items()
        ]
    rows += [(say("licence"), artifact.license or say("not_known")), (say("digest"), f"`{artifact.digest}`")]
    return _table(("", ""), [row for row in rows if row[1]])


def _made(say: Say, runs: Sequence[Run], told: Told) -> str:
    lines = [f"## {say('made')}\n"]
    if not runs:
        return f"{lines[0]}\n{say('made_unknown')}\n"
    for number, run in enumerate(runs, 1):
        inputs = [f"{key} `{told.names.get(digest, digest[:12])}`" for key, digest in run.inputs.items()]
        made = told.names.get(run.output or "", (run.output or "")[:12])
        key = "made_from" if inputs else "made_by"
        lines.append(f"{number}. {say(key, stage=run.stage, made=made, inputs=say('between').join(inputs))}")
        config = {key: value for key, value in run.config.items() if _telling(value)}
        shown = ", ".join(f"{key}={_short(value)}" for key, value in list(config.items())[:SHOWN_CONFIG])
        lines += [f"   {say('config', config=shown)}"] if shown else []
    return "\n".join(lines) + "\n"


def _telling(value: Any) -> bool:
    return value not in (None, "", [], {}, ()) and isinstance(value, str | int | float | bool)


def _short(value: Any) -> str:
    text = str(value).replace("\n", " ").replace("`", "'")
    return f"`{text if len(text) <= 60 else text[:57] + '...'}`"


def _data(say: Say, store: Store, artifact: Artifact, runs: Sequence[Run], told: Told) -> str:
    digests = dict.fromkeys(digest for run in runs for digest in (*run.inputs.values(), run.output or ""))
    rows = []
    for digest in digests:
        found = store.index.artifact(digest) if digest and digest != artifact.digest else None
        if isinstance(found, DatasetVersion):
            rows.append(
                (f"`{told.names.get(digest, digest[:12])}`", f"{found.rows:,}", found.license or say("not_known"))
            )
    if not rows:
        return ""
    return f"## {say('data')}\n\n" + _table((say("data_name"), say("data_rows"), say("data_licence")), rows)


def _scores(say: Say, reports: Iterable[Report]) -> str:
    rows = []
    for report in reports:
        for name, score in report.scores.items():
            known = score.low is not None and score.high is not None
            ends = say("ends", low=f"{score.low:.4g}", high=f"{score.high:.4g}") if known else ""
            rows.append((report.suite, name, f"{score.value:.4g} {score.unit}".rstrip(), ends, score.n or ""))
    if not rows:
        return ""
    head = [say(key) for key in ("suite", "score", "value", "interval", "count")]
    return f"## {say('scores')}\n\n" + _table(head, rows)


def _log(say: Say, store: Store, name: str, kind: str) -> str:
    lines = []
    for row in store.index.versions(name=name):
        found = store.index.artifact(row.digest)
        if found is not None and found.kind == kind:
            runs = store.index.find_runs(output=row.digest, status="done")
            facts = {"version": row.version, "digest": row.digest[:12], "stage": runs[0].stage if runs else ""}
            lines.append((row.created, say("version_by" if runs else "version", **facts)))
    for move in store.index.tag_history(name):
        if not move.tag.startswith("@"):
            key = "tagged" if move.digest else "untagged"
            lines.append((move.moved, say(key, tag=move.tag, digest=(move.digest or "")[:12])))
    lines.sort(key=lambda line: line[0])  # a version stands before the tag that came with it
    told = [f"- {at:%Y-%m-%d %H:%M} {what}" for at, what in lines[-SHOWN_LOG:]]
    return f"## {say('log')}\n\n" + "\n".join(told) + "\n" if told else ""


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"
