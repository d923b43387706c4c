"""The register of pages: menu, rights and tests are made from it. A page without an action does not start.

@page(name="runs", path="/runs", icon="timeline", action="data")
async def runs(view: View) -> None: ...

A page below another has a parameter in its path and no place in the menu: `path="/runs/{id}"`, `menu=False`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from catena.govern.roles import ACTIONS, Action

if TYPE_CHECKING:
    from catena.console.view import View

Build = Callable[["View"], Awaitable[None]]
ORDER = ("overview", "datasets", "recipes", "runs", "models", "evaluation", "deployments", "playground", "audit")
"""The menu from top to bottom; what is not named here stands below."""


@dataclass(frozen=True)
class Page:
    """One registered page."""

    name: str
    """Also the file of its words: its title is the word `<name>.title`."""
    path: str
    icon: str
    """A name of Material Icons."""
    action: Action
    """What a person must be allowed to do to see it."""
    menu: bool
    build: Build

    @property
    def place(self) -> tuple[int, str]:
        """Where it stands in the menu."""
        return (ORDER.index(self.name) if self.name in ORDER else len(ORDER), self.path)


_PAGES: dict[str, Page] = {}


def page(*, name: str, path: str, icon: str, action: Action, menu: bool = True) -> Callable[[Build], Build]:
    """Register a page. `name` says whose menu entry is lit while it is shown."""
    assert action in ACTIONS, f"{path} needs an action of govern.roles"
    assert path.startswith("/"), path

    def register(build: Build) -> Build:
        assert path not in _PAGES, f"two pages at {path}"
        _PAGES[path] = Page(name, path, icon, action, menu, build)
        return build

    return register


def pages() -> list[Page]:
    """Import every module of `console/pages` and return what they registered, in the order of the menu."""
    from catena.console import pages as package

    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
    return sorted(_PAGES.values(), key=lambda page: page.place)
