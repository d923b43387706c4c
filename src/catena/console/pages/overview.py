"""Overview: what there is, what runs, what is in production."""

from __future__ import annotations

from catena.console import parts
from catena.console.cells import count
from catena.console.page import page
from catena.console.read.overview import Totals, totals
from catena.console.view import View


@page(name="overview", path="/", icon="hub", action="models")
async def overview(view: View) -> None:
    """Draw the overview."""
    parts.heading(view.say("overview.title"))
    found: Totals = await parts.read(totals, view.workspace)
    parts.figures(
        [
            (view.say("overview.datasets"), count(found.datasets)),
            (view.say("overview.models"), count(found.models)),
            (view.say("overview.reports"), count(found.reports)),
            (view.say("overview.runs"), count(found.runs)),
        ]
    )
