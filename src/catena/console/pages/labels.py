"""Labelling: not here yet."""

from __future__ import annotations

from catena.console import parts
from catena.console.read.datasets import Opened
from catena.console.view import View


async def labelling(view: View, found: Opened) -> None:
    """Draw the tab."""
    parts.empty(found.ref)
