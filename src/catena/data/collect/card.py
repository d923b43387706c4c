"""The README card of a Hugging Face dataset: licence, and which file belongs to which split. Values only, no I/O."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from catena.data.collect.folder import matches
from catena.hub.repo.card import front_matter

KINDS = (".parquet", ".jsonl", ".ndjson", ".json", ".csv", ".tsv")
COMPRESSED = (".gz", ".bz2", ".xz")
# Files of the format that are not data.
ASIDE = frozenset({"dataset_infos.json", "dataset_dict.json", "dataset_info.json", "state.json", ".gitattributes"})
# How file and folder names tell a split (`train-00000-of-00002.parquet`, `data/dev.csv`), as Hugging Face reads them.
WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}


@dataclass(frozen=True, slots=True)
class Card:
    """What a card says. Without one, every data file counts and its name tells the split."""

    license: str | None = None
    configs: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = ()
    """Configuration names with (glob, split) pairs, the default first."""

    def split_of(self, path: str, config: str = "") -> str | None:
        """Return the split of a data file, or None for a file that is not asked for."""
        name = PurePosixPath(path).name
        if kind_of(path) == "" or name in ASIDE or any(part.startswith(".") for part in path.split("/")):
            return None
        if not self.configs:
            return split_by_name(path) if not config or config in path.split("/")[:-1] else None
        wanted = [pairs for known, pairs in self.configs if known == config] or (
            [self.configs[0][1]] if not config else []
        )
        for pairs in wanted:
            for glob, split in pairs:
                if matches(path, glob):
                    return split or split_by_name(path)
        return None


def read_card(text: str) -> Card:
    """Read the YAML front matter of a README; an empty card where there is none or it is broken."""
    facts = front_matter(text)
    license = facts.get("license")
    if isinstance(license, list):
        license = " AND ".join(str(name) for name in license) or None
    if license == "other":
        license = facts.get("license_name") or facts.get("license_link") or "other"
    configs = facts.get("configs")
    listed = [entry for entry in configs if isinstance(entry, dict)] if isinstance(configs, list) else []
    listed.sort(key=lambda entry: not (entry.get("default") is True or entry.get("config_name") == "default"))
    return Card(
        None if license is None else str(license),
        tuple((str(entry.get("config_name", "default")), tuple(_pairs(entry))) for entry in listed),
    )


def _pairs(entry: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (glob, split) of one configuration: `data_files` is a glob, a list of globs, or a list with splits."""
    folder = str(entry.get("data_dir") or "").strip("/")
    before = f"{folder}/" if folder else ""
    files = entry.get("data_files")
    if files is None:
        yield before + "**", ""
        return
    for part in files if isinstance(files, list) else [files]:
        if isinstance(part, dict):
            paths = part.get("path") or []
            for path in paths if isinstance(paths, list) else [paths]:
                yield before + str(path).removeprefix("./"), str(part.get("split") or "")
        else:
            yield before + str(part).removeprefix("./"), ""


def split_by_name(path: str) -> str:
    """Return the split that a path names, `train` where it names none."""
    words = re.split(r"[^a-z0-9]+", path.lower())
    for word in reversed(words):  # the file's own name says more than its folder's
        for split, names in WORDS.items():
            if word in names:
                return split
    return "train"


def kind_of(path: str) -> str:
    """Return the ending that tells a data file's format (`.parquet`), or nothing."""
    name = path.lower()
    for ending in COMPRESSED:
        name = name.removesuffix(ending)
    return next((kind for kind in KINDS if name.endswith(kind)), "")
