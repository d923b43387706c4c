"""Words of the console: `words/<page>.yaml` holds `key: {en: ..., zh: ...}`; `say("zh", "runs.title")` finds one."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from catena.core.language import LANGUAGES, Language

NAMES: Mapping[Language, str] = {"en": "English", "zh": "中文"}
FOLDER = Path(__file__).with_name("words")


@cache
def words() -> Mapping[str, Mapping[Language, str]]:
    """Return every word by `<file>.<key>`."""
    found: dict[str, Mapping[Language, str]] = {}
    for file in sorted(FOLDER.glob("*.yaml")):
        for key, texts in (yaml.safe_load(file.read_text(encoding="utf-8")) or {}).items():
            found[f"{file.stem}.{key}"] = texts
    return found


def say(language: Language, key: str, values: Mapping[str, Any]) -> str:
    """Return a word in a language, with `{name}` replaced; the key itself where there is no such word."""
    texts = words().get(key)
    if texts is None:
        return key
    return str(texts[language]).format_map(values) if values else str(texts[language])


def preferred(cookie: str, accepted: str) -> Language:
    """Return the language of a visitor: what was chosen, else the first that the browser wants and we have."""
    for language in LANGUAGES:
        if cookie == language:
            return language
    for part in accepted.split(","):
        wanted = part.partition(";")[0].strip().lower().partition("-")[0]
        for language in LANGUAGES:
            if wanted == language:
                return language
    return "en"
