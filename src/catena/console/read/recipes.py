"""Recipes as files that people edit: the list, the text with a stamp, checks with lines, and saving without loss.

A recipe is saved only over the text that its editor had loaded: the stamp is the SHA-256 of that text. Who saves over
something newer is shown both texts and decides; nothing is ever written over silently. Lines end with a line feed here,
whatever they end with in the file: an editor counts each end as one character.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from catena.core.errors import CatenaError, DataError, NotFound, UsageError, WrittenError
from catena.core.source import parse_source
from catena.flow.plan import PlannedStep, make_plan
from catena.flow.recipe import check_recipe
from catena.flow.templates import SHIPPED
from catena.hub.files import write_atomically
from catena.hub.locks import file_lock
from catena.hub.store import FOLDER, Store
from catena.workspace import Workspace

NAME = re.compile(r"[A-Za-z0-9\u4e00-\u9fff][A-Za-z0-9\u4e00-\u9fff._-]{0,80}")
MOST_BYTES, MOST_LINES = 256 * 1024, 5_000
"""Of a recipe that is edited in a browser. The largest that is shipped has 200 lines."""
LINE = re.compile(r"(?:.*?:)?(\d+): (.*)", re.DOTALL)
NEW = ""
"""The stamp of a recipe that is not there yet."""


class Changed(UsageError):
    """Somebody else has saved the recipe meanwhile; `theirs` is what stands there now."""

    def __init__(self, name: str, theirs: str, stamp: str) -> None:
        super().__init__(f"{name} was changed by somebody else while you edited it; nothing was saved")
        self.theirs, self.stamp = theirs, stamp


@dataclass(frozen=True)
class File:
    """A recipe in the list."""

    name: str
    changed: datetime
    size: int


@dataclass(frozen=True)
class Text:
    """A recipe's text as it was loaded."""

    name: str
    text: str
    stamp: str
    """SHA-256 of the text; `NEW` where there is no file yet."""


@dataclass(frozen=True)
class Problem:
    """What is wrong, and where."""

    line: int | None
    message: str


@dataclass(frozen=True)
class Checked:
    """What a check found: problems, or the plan."""

    problems: Sequence[Problem]
    steps: Sequence[PlannedStep] = ()


def folder_of(store: Store) -> Path:
    """Return where a workspace's recipes are by default: `recipes` beside `.catena`, or in another workspace folder."""
    return (store.root.parent if store.root.name == FOLDER else store.root) / "recipes"


def listed(folder: Path) -> list[File]:
    """Return the recipes of a folder by name."""
    found = []
    for path in sorted(folder.glob("*.yaml")):
        if path.is_file() and NAME.fullmatch(path.stem):
            told = path.stat()
            found.append(File(path.stem, datetime.fromtimestamp(told.st_mtime, UTC), told.st_size))
    return found


def shipped() -> list[str]:
    """Return the names of the templates that a new recipe may begin with."""
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def loaded(folder: Path, name: str) -> Text:
    """Read a recipe; raises `NotFound`, `DataError` for what is no text, `UsageError` for one that is too long."""
    path = _path(folder, name)
    try:
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise _too_long(name, f"{size:,} bytes")
        text = path.read_text("utf-8")
    except FileNotFoundError:
        raise NotFound(f"there is no recipe {name!r}", hint=f"Recipes are the files *.yaml in {folder}.") from None
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path.name} is not UTF-8 text (byte {error.start})", hint="A recipe is a YAML file."
        ) from None
    measured(name, text)
    return Text(name, text, stamp_of(text))


def template(name: str) -> str:
    """Return a template's text; raises `NotFound`."""
    if name not in shipped():
        raise NotFound(f"there is no template {name!r}")
    return (SHIPPED / f"{name}.yaml").read_text(encoding="utf-8")


def save(store: Store, folder: Path, edited: Text) -> str:
    """Write a recipe over the text that `edited.stamp` stands for, and return the new stamp.

    Raises `Changed` where another text stands there, `UsageError` for a bad name or too long a text. Where this text
    stands there already, by a second press or by somebody who wrote the same, it is saved.
    """
    path = _path(folder, edited.name)
    measured(edited.name, edited.text)
    folder.mkdir(parents=True, exist_ok=True)
    with file_lock(store.root / "locks" / "recipes.lock"):
        standing = path.read_text("utf-8", "replace") if path.exists() else None
        if standing != edited.text:
            stamp = NEW if standing is None else stamp_of(standing)
            if stamp != edited.stamp:
                raise Changed(edited.name, standing or "", stamp)
            write_atomically(path, edited.text.encode())
    return stamp_of(edited.text)


def checked(workspace: Workspace, name: str, text: str) -> Checked:
    """Check a text as `catena plan` does, and plan it. Nothing runs."""
    try:
        measured(name, text)
        recipe = check_recipe(parse_source(text, name), store=workspace.store)
        return Checked((), make_plan(workspace.store, recipe))
    except WrittenError as error:
        return Checked([_problem(one) for one in (error.problems or (error.message,))])
    except CatenaError as error:
        return Checked([Problem(None, f"{error.message} {error.hint}".strip())])


def measured(name: str, text: str) -> None:
    """Raise `UsageError` for a text that is too long to be edited here, before anything parses it."""
    lines = text.count("\n") + 1
    if lines > MOST_LINES or len(text.encode()) > MOST_BYTES:
        raise _too_long(name, f"{lines:,} lines, {len(text.encode()):,} bytes")


def stamp_of(text: str) -> str:
    """Return what names a text."""
    return hashlib.sha256(text.encode()).hexdigest()


def _too_long(name: str, what: str) -> UsageError:
    return UsageError(
        f"{name} has {what}; the console takes recipes of {MOST_LINES:,} lines and {MOST_BYTES // 1024:,} KB",
        hint=f"Check and run it with: catena plan {name}.yaml. The file is as it was.",
    )


def _problem(message: str) -> Problem:
    match = LINE.fullmatch(message)
    return Problem(int(match[1]), match[2]) if match else Problem(None, message)


def _path(folder: Path, name: str) -> Path:
    if not NAME.fullmatch(name):
        raise UsageError(f"{name!r} cannot name a recipe", hint="Letters, digits, '.', '_' and '-'; 80 at most.")
    path = folder / f"{name}.yaml"
    if path.is_symlink() and not path.resolve().is_relative_to(folder.resolve()):
        raise UsageError(f"{name}.yaml leads out of the folder of recipes")
    return path
