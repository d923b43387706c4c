"""The stage `data.collect_feedback`: answers that users liked or corrected become conversations, where they agreed.

    traces with new or changed feedback -> consent, rating -> mask -> filter -> dedup (also against what is stored)
    the version before -> less what was erased, withdrawn or changed -> with the new rows: the next version

A correction takes the answer's place; the answer then stands in the metadata as `rejected`, so that the row is a pair
of preferences too. A thumb down without one is a reject. Nothing that was said without consent, or by someone who was
erased, is stored: such rejects are empty.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import pyarrow as pa
from pydantic import BeforeValidator, Field, SerializeAsAny

from catena.core.config import Config
from catena.core.digest import digest_of
from catena.core.sample import Sample, sample_id
from catena.core.stage import Context, stage
from catena.core.trace import TRACES, Trace, TraceSource
from catena.core.types import DatasetVersion, ModelVersion
from catena.data.by_hand import ByHand, from_the_start
from catena.data.dedup import DedupConfig
from catena.data.filters.table import Filter, parse_filters
from catena.data.privacy import MaskConfig, mask_row

if TYPE_CHECKING:
    from catena.hub.datasets import DatasetWriter

BLANK = {"messages": list[Any]()}
WITHOUT_WORDS = frozenset({"no_consent", "erased", "missing", "moderated"})
"""Reasons of rejects of which no word is stored."""


class CollectFeedbackConfig(Config):
    """What becomes of feedback."""

    source: str = "audit"
    """Where traces come from."""
    folder: Path | None = Field(default=None, exclude=True)
    """Folder of the audit; none: `audit` in the workspace."""
    models: tuple[str, ...] = ()
    """Only answers of these models, by the name that was asked for; empty: all."""
    system: bool = True
    """Keep the system prompt at the beginning of a conversation."""
    mask: MaskConfig = Field(default_factory=lambda: MaskConfig.model_validate({}))
    """What is done about personal data."""
    filters: Annotated[dict[str, SerializeAsAny[Config]], BeforeValidator(parse_filters)] = Field(
        default_factory=lambda: parse_filters({"length": {"min_tokens": 1}})
    )
    """Filter name to its fields, applied to what would be learnt: the answer, or its correction."""
    dedup: DedupConfig = DedupConfig()
    """What counts as the same; compared are whole conversations, also with what is stored."""
    license: str | None = None
    """Licence of what users wrote, as they agreed to it."""
    max_traces: int = Field(default=100_000, ge=1)
    """Most traces of one run; the next goes on behind them."""

    def modules(self) -> tuple[str, ...]:
        """Return where the filters live: a plugin's too."""
        return tuple(type(rule).__module__ for rule in self.filters.values())


@dataclass(frozen=True, slots=True)
class Judged:
    """What became of one trace."""

    sample: Sample
    reason: str = ""
    detail: str = ""
    counts: Mapping[str, int] | None = None

    @property
    def trace(self) -> str:
        """Id of the trace."""
        return str(self.sample.metadata["trace"])


@stage("data.collect_feedback", volatile=True, uses=("catena.govern.feedback.traces",))
def collect_feedback(ctx: Context, cfg: CollectFeedbackConfig, *, model: ModelVersion | None = None) -> DatasetVersion:
    """Turn answers that users liked or corrected into conversations, and later only what is new, changed or withdrawn.

    With `model`, only its own answers are taken. Reasons of rejects: `no_consent`, `thumbs_down`, `erased`, `missing`,
    `cut`, `moderated`, `failed`, `not_text`, `many_choices`, `too_large`, `other_model`, `empty`, those of masking and
    of the filters, `exact_duplicate`, `near_duplicate`, `duplicate_of_stored`.
    """
    source: TraceSource = TRACES.load(cfg.source)(ctx.store.root, cfg.folder)
    before, since = _before(ctx, cfg, model)
    traces, cursor = source.rated(since, cfg.max_traces)
    by_hand = ByHand(ctx, before, _trace_of, _place)
    old = _Old(by_hand)
    gone = source.destroyed(old.keys())
    judge = judge_of(cfg, model)
    found = map(judge, ctx.progress("Feedback", len(traces), "traces").over(traces))
    # What a person changed or took out stays so, unless it may not be kept any more.
    new = {one.trace: one for one in found if one.reason or one.trace not in by_hand.keys}
    kept = _deduplicated(cfg, old.texts(lambda one: one.get("key") not in gone and one.get("trace") not in new), new)
    counts: Counter[str] = Counter(dict.fromkeys(("new", "changed", "withdrawn", "erased", "kept"), 0))
    masked: Counter[str] = Counter()
    with ctx.store.new_dataset("conversation", license=cfg.license) as out:
        _write(out, old, kept, gone, counts)
        for judged in kept.values():
            masked.update({} if judged.reason else judged.counts or {})
        profile = {"feedback": {"cursor": cursor, "identity": _identity(cfg, model), **counts}, **by_hand.profile(new)}
        version = out.commit(changed=dict(sorted(masked.items())), profile=profile)
    for name, count in sorted(counts.items()):
        ctx.events.metric(name, count)
    return version


def _identity(cfg: CollectFeedbackConfig, model: ModelVersion | None) -> str:
    return digest_of([cfg.model_dump(mode="json", exclude={"max_traces"}), model.digest if model else ""])


def _before(ctx: Context, cfg: CollectFeedbackConfig, model: ModelVersion | None) -> tuple[DatasetVersion | None, int]:
    """Return the version to go on from and its cursor; nothing where it was made with another config."""
    latest = ctx.store.latest(ctx.name)
    if not isinstance(latest, DatasetVersion):
        return None, 0
    stored = latest.profile.get("feedback") or {}
    if latest.shape != "conversation" or stored.get("identity") != _identity(cfg, model):
        from_the_start(ctx, latest, _trace_of)
        return None, 0
    return latest, int(stored["cursor"])


# -- one trace ---------------------------------------------------------------------------------------------------------


def judge_of(cfg: CollectFeedbackConfig, model: ModelVersion | None = None) -> Callable[[Trace], Judged]:
    """Return the function that decides about one trace: masks it, and says why it is kept back where it is."""
    mask = mask_row(cfg.mask)
    filters = cast("dict[str, Filter]", cfg.filters)  # `parse_filters` has seen to it

    def judge(trace: Trace) -> Judged:
        reason = reason_of(trace, cfg, model)
        raw = sample_of(trace, cfg, words=reason not in WITHOUT_WORDS)
        outcome = mask(replace(raw, metadata={"rejected": raw.metadata.get("rejected", "")}))
        rejected = {"rejected": outcome.sample.metadata["rejected"]} if "rejected" in raw.metadata else {}
        sample = replace(raw, data=outcome.sample.data, metadata={**raw.metadata, **rejected})
        if reason:
            return Judged(sample, reason)
        if outcome.reason:
            return Judged(sample, outcome.reason, outcome.detail)
        learnt = Sample(sample.id, {"text": str(sample.data["messages"][-1]["content"])})
        for name, rule in filters.items():
            if (found := rule.reason(learnt)) is not None:
                return Judged(sample, found, f"filter {name}")
        return Judged(sample, counts=outcome.counts)

    return judge


def reason_of(trace: Trace, cfg: CollectFeedbackConfig, model: ModelVersion | None = None) -> str:
    """Return why a trace is kept back before anybody looks at its words, or nothing."""
    if trace.problem in ("erased", "missing"):
        return trace.problem
    if not trace.consent:
        return "no_consent"
    if cfg.models and trace.model not in cfg.models:
        return "other_model"
    if model is not None and not (trace.digest and model.digest.startswith(trace.digest)):
        return "other_model"
    if trace.problem:
        return trace.problem
    if any(one.get("by") == "moderation" and one.get("decision") == "block" for one in trace.decisions):
        return "moderated"
    if trace.status != 200:
        return "failed"
    if trace.rating == "down" and not trace.correction:
        return "thumbs_down"
    if not (trace.correction or trace.answer).strip() or not any(text.strip() for _, text in trace.messages):
        return "empty"
    return ""


def sample_of(trace: Trace, cfg: CollectFeedbackConfig, *, words: bool = True) -> Sample:
    """Return the row of a trace; its id is the trace's, so that what was erased once never comes back."""
    metadata: dict[str, Any] = {
        "trace": trace.id,
        "time": trace.time,
        "model": trace.model,
        "digest": trace.digest,
        "subject": trace.subject,
        "key": trace.key,
        "rating": trace.rating,
        "corrected": bool(trace.correction),
    }
    messages: list[dict[str, str]] = []
    if words and not trace.problem:
        asked = [(role, text) for role, text in trace.messages if cfg.system or role != "system"]
        target = trace.correction or trace.answer
        messages = [{"role": role, "content": text} for role, text in (*asked, ("assistant", target))]
        metadata |= {"rejected": trace.answer} if trace.correction and trace.answer else {}
    id = sample_id("feedback", trace.id)
    return Sample(id, {"messages": messages}, metadata, f"trace:{trace.id}", cfg.license)


# -- all together ------------------------------------------------------------------------------------------------------


class _Old:
    """The version before, read when it is needed."""

    def __init__(self, by_hand: ByHand) -> None:
        self.rows, self._dataset = by_hand.rows, by_hand.opened

    def rejects(self) -> Iterator[tuple[Sample, str, str]]:
        return self._dataset.rejects() if self._dataset else iter(())

    def keys(self) -> set[str]:
        """Return the data keys of all that is stored."""
        samples = (*self.rows(), *(sample for sample, _, _ in self.rejects()))
        return {str(one.metadata["key"]) for one in samples if one.metadata.get("key")}

    def texts(self, stays: Callable[[Mapping[str, Any]], bool]) -> list[str]:
        return [sample.text for sample in self.rows() if stays(sample.metadata)]


def _deduplicated(cfg: CollectFeedbackConfig, stored: list[str], new: Mapping[str, Judged]) -> dict[str, Judged]:
    """Return what is new in the order of time; of equal or nearly equal conversations one stays, a stored one first."""
    from catena.data.dedup import _signing
    from catena.data.duplicates import find, ranks
    from catena.data.signing import SignedTexts

    good = sorted((one for one in new.values() if not one.reason), key=_place_of)
    decided = {trace: one for trace, one in new.items() if one.reason}
    if good:
        bands = cfg.dedup.bands if cfg.dedup.near else 0
        signed = SignedTexts([*stored, *(one.sample.text for one in good)], _signing(cfg.dedup))
        ids = pa.chunked_array([pa.array([one.sample.id for one in good], pa.string())])
        rank = ranks(signed.facts["length"], ids, len(stored))
        found = find(signed, rank, bands, cfg.dedup.threshold, stored=len(stored))
        for place, one in enumerate(good, start=len(stored)):
            kept_for = int(found.kept_for[place])
            if kept_for < 0:
                decided[one.trace] = one
                continue
            of_stored = kept_for < len(stored)
            reason = "exact_duplicate" if found.equal[place] else "near_duplicate"
            kept = "a stored row" if of_stored else good[kept_for - len(stored)].sample.id
            detail = f"of {kept}, similarity {found.similarity[place]:.3f}"
            decided[one.trace] = replace(one, reason="duplicate_of_stored" if of_stored else reason, detail=detail)
    return {one.trace: one for one in sorted(decided.values(), key=_place_of)}


def _trace_of(sample: Sample) -> str:
    return str(sample.metadata.get("trace", ""))


def _place_of(judged: Judged) -> tuple[str, str]:
    return _place(judged.sample)


def _place(sample: Sample) -> tuple[str, str]:
    return str(sample.metadata.get("time", "")), str(sample.metadata.get("trace", ""))


def _write(out: DatasetWriter, old: _Old, new: Mapping[str, Judged], gone: set[str], counts: Counter[str]) -> None:
    """Write the version before as it is now, and what is new, both in the order of time; then the rejects."""
    rejects: list[tuple[Sample, str, str]] = []
    seen: set[str] = set()

    def stays(stored: Iterable[Sample]) -> Iterator[Sample]:
        for sample in stored:
            now = new.get(_trace_of(sample))
            if now is not None:
                seen.add(now.trace)
                counts["changed" if not now.reason else "withdrawn"] += 1
            elif sample.metadata.get("key") in gone:
                counts["erased"] += 1
                rejects.append((_blank(sample), "erased", ""))
            else:
                counts["kept"] += 1
                yield sample

    fresh = (one.sample for one in new.values() if not one.reason)
    for sample in heapq.merge(stays(old.rows()), fresh, key=_place):
        out.add(sample)
    counts["new"] = sum(not one.reason for one in new.values()) - counts["changed"]
    for sample, reason, detail in old.rejects():
        if str(sample.metadata.get("trace")) in new:
            continue
        erased = sample.metadata.get("key") in gone
        rejects.append((_blank(sample), "erased", "") if erased else (sample, reason, detail))
    rejects += [(one.sample, one.reason, one.detail) for one in new.values() if one.reason]
    for sample, reason, detail in sorted(rejects, key=lambda entry: _place(entry[0])):
        out.reject(sample, reason, detail)


def _blank(sample: Sample) -> Sample:
    facts = {name: value for name, value in sample.metadata.items() if name != "rejected"}
    return replace(sample, data=dict(BLANK), metadata=facts)
