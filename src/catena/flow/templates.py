"""Recipes and pipelines to begin with, as files of one's own: `catena init --template NAME`, `--ci github`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import yaml

from catena.core.errors import NotFound, UsageError, did_you_mean
from catena.hub.files import write_atomically

SHIPPED = Path(__file__).parent / "templates"
PIPELINES = {"github": ".github/workflows/catena.yml", "gitlab": ".gitlab-ci.yml"}


def templates() -> Mapping[str, str]:
    """Return every template's name, and what its recipe says of itself."""
    found = {path.stem: path.read_text(encoding="utf-8") for path in sorted(SHIPPED.glob("*.yaml"))}
    return {name: str(yaml.safe_load(text)["description"]) for name, text in found.items()}


def write_template(name: str, folder: Path) -> Path:
    """Write a recipe as `NAME.yaml`. Raises `NotFound` with the closest names, `UsageError` where the file is there."""
    if name not in templates():
        raise NotFound(f"there is no template {name!r}", hint=did_you_mean(name, templates()))
    return _write(SHIPPED / f"{name}.yaml", folder / f"{name}.yaml")


def write_pipeline(where: str, folder: Path) -> Path:
    """Write the pipeline of a forge where it looks for one; raises as `write_template`."""
    if where not in PIPELINES:
        raise NotFound(f"there is no pipeline for {where!r}", hint=did_you_mean(where, PIPELINES))
    return _write(SHIPPED / "ci" / f"{where}.yaml", folder / PIPELINES[where])


def _write(source: Path, target: Path) -> Path:
    if target.exists():
        raise UsageError(f"{target} is there already", hint="Rename it or take it away; nothing was written over.")
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(target, source.read_bytes())
    return target
