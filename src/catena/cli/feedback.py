"""`catena feedback list`, and `catena data collect`: what users said of answers, and the dataset that is made of it."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from catena.cli.session import session_of


def collect(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The dataset that grows.")] = "feedback",
    model: Annotated[
        str, typer.Option(metavar="REF", help="Only answers of this stored model; lineage then shows it.")
    ] = "",
    assignments: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A value of data.collect_feedback.")
    ] = None,
) -> None:
    """Make the next version of a dataset from feedback. Masked, filtered, and only where users agreed.

    Only what is new, changed, withdrawn or erased since the version before is looked at. Each trace that is kept back
    is a reject with its reason: `catena show NAME --rejects`.
    """
    from catena.cli.audit import note
    from catena.cli.views import artifact_line
    from catena.core.config import override
    from catena.core.types import DatasetVersion

    session = session_of(context)
    config = override({}, assignments or ())
    folder = session.settings().govern.audit.folder
    if folder is not None:
        config.setdefault("folder", str(folder))
    with session.open() as workspace, session.listeners() as listeners:
        inputs = {"model": model} if model else {}
        stage = "data.collect_feedback"
        made = workspace.do(stage, inputs, config, name=name, refresh=True, listeners=listeners)
        assert isinstance(made, DatasetVersion)
        newest = workspace.store.index.versions(name=name)[-1]
        found = dict(made.profile["feedback"])
        counts = {key: value for key, value in found.items() if key not in ("cursor", "identity")}
        funnel = made.funnel
        rejected = dict(funnel.rejected) if funnel else {}
        note(session, workspace, "data.collect", dataset=made.digest, counts=counts, rejected=rejected)
    ref = f"{newest.name}@{newest.version}"
    if session.out.json:
        told: dict[str, Any] = {"ref": ref, "digest": made.digest, "rows": made.rows, **counts, "rejected": rejected}
        session.out.value(told)
    else:
        session.out.line(artifact_line(ref, made))
        session.out.fields({**counts, "rejected": ", ".join(f"{key} {value}" for key, value in rejected.items())})


def list_(
    context: typer.Context,
    model: Annotated[str, typer.Option(metavar="NAME", help="About answers of this model.")] = "",
    rating: Annotated[str, typer.Option(metavar="up|down", help="Only these.")] = "",
    after: Annotated[int, typer.Option(metavar="NUMBER", help="Behind this one.")] = 0,
    limit: Annotated[int, typer.Option(min=1, help="Most entries.")] = 100,
) -> None:
    """List what users said of answers, in the order of the last change. That somebody looked is written down."""
    from catena.cli.audit import note
    from catena.govern.feedback.book import Book

    session = session_of(context)
    config = session.settings().govern
    with session.open() as workspace:
        with Book(workspace.store.root, config.audit, config.feedback) as book:
            found = book.entries(since=after, model=model, rating=rating, limit=limit)
        note(session, workspace, "feedback.list", found=len(found))
    if session.out.json:
        session.out.value([{**asdict(one), "id": one.id} for one in found])
        return
    rows = [
        (
            one.number,
            f"{datetime.fromtimestamp(one.changed / 1e6, UTC):%Y-%m-%d %H:%M}",
            one.subject or "(erased)",
            one.model,
            one.rating,
            "may be learnt from" if one.consent else "may not",
            (one.correction or one.comment)[:80],
        )
        for one in found
    ]
    columns = ("number", "time", "who", "model", "rating", "consent", "correction or comment")
    session.out.table(columns, rows, empty="nobody has said anything yet")


DATA_COMMANDS = (
    (
        "collect",
        collect,
        "  catena data collect feedback\n"
        "  catena data collect feedback --model helper@production --set mask.mode=drop\n"
        "  catena do data.collect_feedback --name feedback --refresh",
    ),
)
COMMANDS = (("list", list_, "  catena feedback list\n  catena feedback list --rating down --json"),)
