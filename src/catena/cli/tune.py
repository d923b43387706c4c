"""Command about search: tune."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from catena.cli.recipe import Assignments, Executor, Mlflow, TensorBoard
from catena.cli.session import session_of
from catena.core.errors import UsageError

Method = Literal["tpe", "genetic", "random"]


def tune(
    context: typer.Context,
    what: Annotated[str, typer.Argument(metavar="RECIPE or STAGE", help="A recipe file, or a stage for --use.")],
    step: Annotated[str | None, typer.Option(metavar="STEP", help="Whose config is searched.")] = None,
    space: Annotated[Path | None, typer.Option(metavar="FILE", help="The search space (YAML).")] = None,
    metric: Annotated[
        list[str] | None, typer.Option(metavar="NAME[:higher]", help="What is made low (or high); many times.")
    ] = None,
    measure: Annotated[str | None, typer.Option(metavar="STEP", help="A later step whose scores count.")] = None,
    trials: Annotated[int | None, typer.Option(help="How many trials at most.")] = None,
    jobs: Annotated[int | None, typer.Option(help="Trials at once.")] = None,
    method: Annotated[Method | None, typer.Option(help="How the coarse stage proposes.")] = None,
    prune: Annotated[bool, typer.Option("--prune", help="Give trials up that are worse than the median.")] = False,
    tag: Annotated[str | None, typer.Option(metavar="TAG", help="Tag the best trial's output.")] = None,
    on: Annotated[Executor, typer.Option(help="Where trials run.")] = "local",
    use: Annotated[
        list[str] | None, typer.Option(metavar="INPUT=REF", help="Give a stage's input something stored; many times.")
    ] = None,
    assignments: Assignments = None,
    seed: Annotated[int, typer.Option(help="Seed of everything random (of a stage; a recipe has its own).")] = 0,
    tensorboard: TensorBoard = None,
    mlflow: Mlflow = None,
) -> None:
    """Search good values for a step's config. Wide first, then close round the best; a killed search goes on."""
    from catena.cli.views import tune_record
    from catena.flow.recipe import load_recipe
    from catena.flow.space import read_space
    from catena.flow.table import STAGES
    from catena.flow.tune import with_search

    section: dict[str, Any] = {
        "step": step,
        "space": read_space(space) if space else None,
        "objectives": [objective_of(text) for text in metric or ()] or None,
        "measure": measure,
        "trials": trials,
        "jobs": jobs,
        "method": method,
        "prune": prune or None,
        "tag": tag,
    }
    section = {name: value for name, value in section.items() if value is not None}
    session = session_of(context)
    if what not in STAGES:
        with_search(load_recipe(what, overrides=assignments or ()), section)  # a mistake leaves no empty workspace
    with session.open(create=True) as workspace, session.listeners(tensorboard, mlflow, events=True) as listeners:
        recipe = recipe_of(workspace, what, use or [], assignments or [], seed)
        found = workspace.tune(recipe, listeners=listeners, on=on, **section)
    record = tune_record(found)
    if session.out.json:
        session.out.value(record)
        return
    names = [objective.metric for objective in found.config.objectives]
    rows = [
        (row["trial"], *row["values"].values(), *(f"{score:.5g}" for score in row["scores"].values()), row["ref"])
        for row in record["trials"]
        if row["status"] == "done"
    ]
    session.out.table(("trial", *record["best"]["values"], *names, "output"), rows)
    step = "" if what in STAGES else f"{record['step']}."
    words = " ".join(f"--set {step}{name}={value}" for name, value in record["best"]["values"].items())
    session.out.line(f"best: {words}")
    session.out.note(f"report {found.page}")


def objective_of(text: str) -> dict[str, str]:
    """Read `val_loss`, or `accuracy:higher`."""
    name, sign, goal = text.partition(":")
    if not name or (sign and goal not in ("lower", "higher")):
        raise UsageError(f"--metric {text!r} is not of the form NAME or NAME:higher")
    return {"metric": name, "goal": goal or "lower"}


def recipe_of(workspace: Any, what: str, use: list[str], assignments: list[str], seed: int) -> Any:
    """Return the recipe of a file, or of one stage on stored things."""
    from catena.cli.stage import pairs
    from catena.core.config import override
    from catena.flow.recipe import one_step
    from catena.flow.table import STAGES

    if what not in STAGES:
        if use:
            raise UsageError("--use is for a stage; a recipe names its inputs itself")
        return workspace.recipe(what, assignments)
    return one_step(what, pairs(use), override({}, assignments), seed=seed, store=workspace.store)


COMMANDS = (
    (
        "tune",
        tune,
        "  catena tune recipes/python-helper.yaml --step base --space space.yaml --trials 20\n"
        "  catena tune train.pretrain --use tokenizer=words --use data=corpus --space space.yaml --jobs 2\n"
        "  catena tune recipe.yaml --metric val_loss --metric seconds --method genetic --tag best --json",
    ),
)
