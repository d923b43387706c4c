"""Commands about stored things: list, show, tag."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from catena.cli.session import session_of
from catena.core.errors import UsageError

Ref = Annotated[str, typer.Argument(metavar="REF", help="name, name@tag, name@version or the start of a digest.")]


def list_(
    context: typer.Context,
    kind: Annotated[str | None, typer.Argument(metavar="[KIND]", help="dataset, model or report.")] = None,
    name: Annotated[str | None, typer.Option(metavar="PATTERN", help="Only names like this: python-*/pages.")] = None,
) -> None:
    """List what is stored: every version of every name."""
    from catena.cli.views import list_rows
    from catena.core.types import KINDS

    if kind is not None and kind not in KINDS:
        raise UsageError(f"{kind!r} is not a kind", hint=f"Kinds: {', '.join(KINDS)}.")
    session = session_of(context)
    with session.open() as workspace:
        rows = list_rows(workspace.store, kind=kind, pattern=name)
    if session.out.json:
        session.out.value(rows)
        return
    table = [(row["ref"], row["kind"], row["digest"][:12], row["created"][:19], ", ".join(row["tags"])) for row in rows]
    nothing = "nothing is stored" if kind is None and name is None else "nothing that is stored is like this"
    session.out.table(("ref", "kind", "digest", "created", "tags"), table, empty=nothing)


def show(
    context: typer.Context,
    ref: Ref,
    samples: Annotated[int, typer.Option(metavar="N", min=0, help="Show the first N samples of a dataset.")] = 0,
    rejects: Annotated[bool, typer.Option("--rejects", help="Show what was kept back, and why.")] = False,
    reason: Annotated[str | None, typer.Option(metavar="REASON", help="Only rejects with this reason.")] = None,
    funnel: Annotated[bool, typer.Option("--funnel", help="Show rows in, out and why, back to the source.")] = False,
    events: Annotated[bool, typer.Option("--events", help="Show the events of the run that made it.")] = False,
    svg: Annotated[Path | None, typer.Option(metavar="FILE", help="With --funnel: draw it into a file.")] = None,
    limit: Annotated[int, typer.Option(metavar="N", min=0, help="At most so many rejects and events.")] = 20,
) -> None:
    """Show a stored thing: its fields, its run, its scores."""
    from catena.cli.funnel import draw
    from catena.cli.show import Parts, print_record, record_of

    if svg is not None and not funnel:
        raise UsageError("--svg draws a funnel", hint="Say --funnel --svg FILE.")
    parts = Parts(samples, rejects or reason is not None, reason, funnel, events, limit)
    session = session_of(context)
    with session.open() as workspace:
        record = record_of(workspace.store, ref, parts)
    if svg is not None:
        svg.write_text(draw(record["funnel"]), encoding="utf-8")
        session.out.note(f"wrote {svg}")
    if session.out.json:
        session.out.value(record)
    else:
        print_record(session.out, record)


def tag(
    context: typer.Context,
    ref: Ref,
    tag: Annotated[str, typer.Argument(metavar="TAG", help="A word that will stand for this version.")],
    remove: Annotated[bool, typer.Option("--remove", help="Take the tag away from the name.")] = False,
) -> None:
    """Put a tag on a version of a name, or take it away. The history of tags is kept (`catena log`)."""
    session = session_of(context)
    with session.open() as workspace:
        name = ref.partition("@")[0]
        if remove:
            workspace.store.untag(name, tag, by="catena tag")
        digest = None if remove else workspace.store.tag(ref, tag, by="catena tag").digest
    if session.out.json:
        session.out.value({"name": name, "tag": tag, "digest": digest})
    else:
        session.out.line(f"{name}@{tag} {'was removed' if remove else f'is {ref} ({digest[:12] if digest else None})'}")


COMMANDS = (
    ("list", list_, "  catena list\n  catena list model --json\n  catena list --name 'python-helper/*'"),
    (
        "show",
        show,
        "  catena show python-helper@production\n"
        "  catena show python-helper/pages --samples 3\n"
        "  catena show python-helper/clean --rejects --reason too_short\n"
        "  catena show python-helper/clean --funnel --svg funnel.svg",
    ),
    ("tag", tag, "  catena tag python-helper@3 production\n  catena tag python-helper production --remove"),
)
