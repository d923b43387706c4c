"""Rules for Chinese, Japanese and Korean, where Gopher's statements about words say nothing.

Characters are counted instead of words, a sentence ends with 。！？, and function characters take the place of stop
words. The values are our own, set so that ordinary prose stays far from each limit. Simplified and traditional Chinese
are judged alike, and nothing is converted. Text in any other language passes.
"""

from __future__ import annotations

import re
import unicodedata

from pydantic import Field

from catena.core.config import Config
from catena.core.sample import Sample
from catena.data.scripts import EastAsian, Letters, count_sentences, language_of, letters_of

# The commonest function characters; the traditional forms stand beside the simplified ones.
FUNCTION = {
    "zh": frozenset("的一是不了在有我他这這个個们們来來到和也就而与與及为為于於之其以对對并並或被把从從"),
    "ja": frozenset("のにはをたがでてとしれさいるもなかられ"),
    "ko": frozenset("이가은는을를의에로와과도다고지한서"),
}
DECORATION = re.compile(
    r"[\u2190-\u2bff\u3003\u3004\u3012\u3013\u3020\u3036\u303d-\u303f\ufe0f\U0001f000-\U0001faff#|_~＃｜＿～]"
)
WORDLESS = re.compile(r"[\W_]*")


class ScriptRules(Config):
    """What a text in one language has to be like."""

    min_script: float = Field(default=0.5, ge=0, le=1)
    """Least share of the language's own script in all letters (Han; kana for Japanese; hangul)."""
    max_symbols: float = Field(default=0.1, ge=0, le=1)
    """Largest share of decorative symbols (arrows, stars, boxes, emoji, | # _ ~) in all characters."""
    max_punctuation: float = Field(default=0.3, ge=0, le=1)
    """Largest share of punctuation in all characters that are not spaces."""
    max_wordless_lines: float = Field(default=0.3, ge=0, le=1)
    """Largest share of lines with nothing but punctuation and symbols."""
    max_sentence: float = Field(default=250, gt=0)
    """Greatest mean length of a sentence, in characters: lists of key words have no end."""
    min_function: float = Field(default=0.03, ge=0, le=1)
    """Least share of function characters (的 是 了; の は を; 이 는 을) in the letters of the language's script."""


class Languages(Config):
    """Drop Chinese, Japanese and Korean text that does not read like prose; other languages pass."""

    zh: ScriptRules = Field(default_factory=ScriptRules)
    """Chinese, simplified and traditional."""
    ja: ScriptRules = Field(default_factory=lambda: ScriptRules(min_script=0.1, min_function=0.1))
    """Japanese; `min_script` is of kana."""
    ko: ScriptRules = Field(default_factory=lambda: ScriptRules(min_function=0.08))
    """Korean."""

    def reason(self, sample: Sample) -> str | None:
        """Return the language and the code of the first rule that is broken, or None."""
        language = language_of(sample)
        if language is None:
            return None
        rules: ScriptRules = getattr(self, language)
        code = broken_rule(sample.text, language, rules)
        return f"{language}_{code}" if code else None


def broken_rule(text: str, language: EastAsian, rules: ScriptRules) -> str | None:
    """Return `script`, `symbols`, `punctuation`, `wordless_lines`, `sentence_length`, `function_words`, or None."""
    letters = letters_of(text)
    own = own_letters(letters, language)
    if letters.share(own) < rules.min_script:
        return "script"
    solid = "".join(text.split())
    if len(DECORATION.findall(solid)) > rules.max_symbols * len(solid):
        return "symbols"
    if sum(unicodedata.category(character)[0] == "P" for character in solid) > rules.max_punctuation * len(solid):
        return "punctuation"
    lines = [line for line in text.splitlines() if line.strip()]
    if sum(WORDLESS.fullmatch(line) is not None for line in lines) > rules.max_wordless_lines * len(lines):
        return "wordless_lines"
    if len(solid) > rules.max_sentence * max(count_sentences(text), 1):
        return "sentence_length"
    if sum(map(FUNCTION[language].__contains__, solid)) < rules.min_function * max(own, 1):
        return "function_words"
    return None


def own_letters(letters: Letters, language: EastAsian) -> int:
    """Return how many letters are of the language's own script; Japanese is known by its kana."""
    return {"zh": letters.han, "ja": letters.kana, "ko": letters.hangul}[language]
