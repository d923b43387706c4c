"""Recipes: the list with what was started here, and a recipe as text with its checks."""

from __future__ import annotations

from pathlib import Path

from nicegui import ui

from catena.console import cells, jobs, parts
from catena.console.page import page
from catena.console.pages.recipe_editor import Editor
from catena.console.parts import Column, Slice
from catena.console.read import recipes as read
from catena.console.view import View

EMPTY = "name: {name}\ndescription: ''\nsteps:\n  first:\n    stage: data.ingest\n    with: {{paths: [documents]}}\n"


def folder(view: View) -> Path:
    """Return the folder of recipes."""
    return view.console.recipes or read.folder_of(view.workspace.store)


@page(name="recipes", path="/recipes", icon="schema", action="data")
async def recipes(view: View) -> None:
    """List recipes, and the runs that were started here."""
    place = folder(view)
    found = await parts.read(read.listed, place)
    with parts.heading(view.say("recipes.title"), view.say("recipes.lead", folder=place)):
        if view.may("push"):
            parts.button(view.say("recipes.new"), lambda: _new(view), icon="add", main=True)
    with parts.card():
        if found:
            heads = [
                Column(view.say("recipes.name"), wide=True),
                Column(view.say("recipes.size"), "right", phone=False),
                Column(view.say("recipes.changed"), "right"),
            ]
            parts.table(
                heads,
                [
                    [
                        cells.link(view.href("recipes", one.name), one.name),
                        cells.size(one.size),
                        cells.when(view.language, one.changed),
                    ]
                    for one in found
                ],
            )
        else:
            parts.empty(view.say("recipes.none"), "catena init --template docs-qa")
    await _started(view)


async def _started(view: View) -> None:
    store = view.workspace.store
    heads = [
        Column(view.say("recipes.name"), wide=True),
        Column(view.say("recipes.state")),
        Column(view.say("recipes.by"), phone=False),
        Column(view.say("recipes.started"), "right"),
    ]

    def load(offset: int, limit: int, _: str) -> Slice:
        found = jobs.jobs(store)
        rows: list[list[object]] = [
            [
                cells.link(view.href("recipes/jobs", one.id), one.recipe),
                cells.status(view.language, jobs.state(store, one)),
                one.by,
                cells.when(view.language, one.at),
            ]
            for one in found[offset : offset + limit]
        ]
        return Slice(rows, len(found))

    with parts.card(view.say("recipes.runs_here")):
        if not await parts.read(jobs.jobs, store):
            parts.empty(view.say("recipes.no_runs"))
            return
        table = await parts.paged(view, heads, load, size=20)
    parts.live(view, 2.0, table.refresh, "data")


async def _new(view: View) -> None:
    """Ask for a name and a beginning, and open the new recipe in the editor."""
    view.need("push")
    begin = {"": view.say("recipes.empty_template")} | {one: one for one in read.shipped()}
    with ui.dialog() as dialog, ui.element("div").classes("c-dialog"):
        parts.html(f"{view.say('recipes.new')}", tag="h2")
        name = ui.input(view.say("recipes.new_name")).props("outlined dense autofocus")
        chosen = ui.select(begin, value="", label=view.say("recipes.begin_with")).props("outlined dense")

        def create() -> None:
            view.need("push")
            wanted = (name.value or "").strip().removesuffix(".yaml")
            text = read.template(chosen.value) if chosen.value else EMPTY.format(name=wanted or "recipe")
            read.save(view.workspace.store, folder(view), read.Text(wanted, text, read.NEW))
            ui.navigate.to(view.path("recipes", wanted))

        with ui.element("div").classes("c-acts"):
            parts.button(view.say("parts.cancel"), dialog.close)
            parts.button(view.say("recipes.create"), create, main=True)
    await parts.answer_to(dialog)


@page(name="recipes", path="/recipes/{name}", icon="schema", action="data", menu=False)
async def recipe(view: View) -> None:
    """Show a recipe's text, checked, to be changed and started."""
    loaded = await parts.read(read.loaded, folder(view), view.parameters["name"])
    editor = Editor(view, folder(view), loaded)
    await editor.draw()
