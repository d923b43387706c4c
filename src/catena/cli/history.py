"""Commands about how things came to be: log, lineage."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from catena.cli.progress import duration
from catena.cli.session import session_of
from catena.core.errors import UsageError


def log(
    context: typer.Context,
    about: Annotated[
        str | None, typer.Argument(metavar="[REF or RUN]", help="Only runs around this, or this run, or its group.")
    ] = None,
    limit: Annotated[int, typer.Option(metavar="N", min=0, help="At most so many of each; 0 for all.")] = 50,
) -> None:
    """List runs and moves of tags, newest first."""
    from catena.cli.views import history_of

    session = session_of(context)
    with session.open() as workspace:
        history = history_of(workspace.store, about)
    history = {key: rows[: limit or None] for key, rows in history.items()}
    if session.out.json:
        session.out.value(history)
        return
    runs = [
        (
            run["started"][:19],
            run["id"],
            run["step"],
            run["stage"],
            run["status"],
            "" if run["seconds"] is None else duration(run["seconds"]),
            run["error"] or run["ref"] or "",
        )
        for run in history["runs"]
    ]
    session.out.table(("started", "run", "step", "stage", "status", "took", "output"), runs, empty="no runs yet")
    moves = [
        (move["moved"][:19], f"{move['name']}@{move['tag']}", move["ref"] or "removed", move["by"])
        for move in history["tags"]
    ]
    if moves:
        session.out.table(("moved", "tag", "to", "by"), moves)


def lineage(
    context: typer.Context,
    ref: Annotated[str, typer.Argument(metavar="REF", help="What to follow.")],
    up: Annotated[bool, typer.Option("--up", help="Only what it was made from.")] = False,
    down: Annotated[bool, typer.Option("--down", help="Only what was made of it.")] = False,
    answer: Annotated[
        str | None, typer.Option(metavar="TEXT", help="The pages a model learnt this answer from.")
    ] = None,
    svg: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw it into a file.")] = None,
) -> None:
    """Show what a thing was made from and what was made of it. The way up ends at the source documents."""
    from catena.hub.drawing import as_svg
    from catena.hub.lineage import as_json, as_text

    if answer is not None and svg is not None:
        raise UsageError("--answer lists pages; it draws nothing", hint="Leave --svg out.")
    session = session_of(context)
    with session.open() as workspace:
        if answer is not None:
            sources = [asdict(source) for source in workspace.model(ref).sources(answer)]
        else:
            graph = workspace.lineage(ref, up=up or not down, down=down or not up)
    if answer is not None:
        rows = [(f"{row['similarity']:.2f}", row["page"], row["question"], row["answer"]) for row in sources]
        if session.out.json:
            session.out.value(sources)
        else:
            session.out.table(("similar", "page", "question", "answer"), rows, empty="no training sample is near")
        return
    if svg is not None:
        svg.write_text(as_svg(graph), encoding="utf-8")
        session.out.note(f"wrote {svg}")
    if session.out.json:
        session.out.value(as_json(graph))
    elif svg is None:
        session.out.line(as_text(graph))


COMMANDS = (
    ("log", log, "  catena log\n  catena log python-helper@production\n  catena log --limit 5 --json"),
    (
        "lineage",
        lineage,
        "  catena lineage python-helper@production\n"
        "  catena lineage python-helper --up --svg lineage.svg\n"
        "  catena lineage python-helper --answer 'Deserialize s to a Python object.'",
    ),
)
