"""Commands about recipes: run, plan."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from catena.cli.progress import duration
from catena.cli.session import session_of

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe file (YAML).")]
Assignments = Annotated[
    list[str] | None, typer.Option("--set", metavar="STEP.KEY=VALUE", help="Change a value; may be given many times.")
]
Until = Annotated[str | None, typer.Option(metavar="STEP", help="Only this step and what it needs.")]
Executor = Literal["local", "ray"]
TensorBoard = Annotated[Path | None, typer.Option(metavar="FOLDER", help="Write metrics for TensorBoard too.")]
Mlflow = Annotated[str | None, typer.Option(metavar="URI", help="Send configs and metrics to MLflow too.")]
Refresh = Annotated[bool, typer.Option("--refresh", help="Look at the outside world again (crawls).")]


def run(
    context: typer.Context,
    recipe: RecipeFile,
    assignments: Assignments = None,
    until: Until = None,
    refresh: Refresh = False,
    report: Annotated[Path | None, typer.Option(metavar="FILE", help="Where to write the report (HTML).")] = None,
    on: Annotated[Executor, typer.Option(help="Who works on shards of rows; the outputs are the same.")] = "local",
    tensorboard: TensorBoard = None,
    mlflow: Mlflow = None,
) -> None:
    """Run a recipe, or go on with one that was stopped. What was done before comes from the store."""
    from catena.cli.views import run_result
    from catena.flow.recipe import load_recipe

    session = session_of(context)
    load_recipe(recipe, overrides=assignments or ())  # a recipe with a mistake leaves no empty workspace behind
    with session.open(create=True) as workspace, session.listeners(tensorboard, mlflow, events=True) as listeners:
        result = workspace.run(
            recipe,
            overrides=assignments or (),
            refresh=refresh,
            until=until,
            report=report,
            listeners=listeners,
            on=on,
        )
    if session.out.json:
        session.out.value(run_result(result))
    elif not session.out.quiet:
        session.out.line(f"{result.recipe} {result.status} in {duration(result.seconds)}, report {result.report}")


def plan(
    context: typer.Context,
    recipe: RecipeFile,
    assignments: Assignments = None,
    until: Until = None,
    refresh: Refresh = False,
) -> None:
    """Say which steps of a recipe would run, and why. Nothing runs."""
    session = session_of(context)
    with session.open_or_empty() as workspace:
        steps = workspace.plan(recipe, overrides=assignments or (), until=until, refresh=refresh)
    if session.out.json:
        session.out.value([asdict(step) for step in steps])
        return
    rows = [(step.step, step.stage, step.status, step.reason, (step.output or "")[:12]) for step in steps]
    session.out.table(("step", "stage", "status", "reason", "output"), rows)


COMMANDS = (
    (
        "run",
        run,
        "  catena run recipes/python-helper.yaml\n"
        "  catena run recipes/python-helper.yaml --set base.tokens=100000 --until base\n"
        "  catena run recipes/python-helper.yaml --on ray\n"
        "  catena run recipes/python-helper.yaml --tensorboard board --mlflow http://127.0.0.1:5000\n"
        "  catena run recipes/python-helper.yaml --json | tail -1",
    ),
    ("plan", plan, "  catena plan recipes/python-helper.yaml\n  catena plan recipes/python-helper.yaml --json"),
)
