"""`catena keys create | list | revoke | rotate`: who may use a server that runs with --auth."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from catena.cli.audit import note
from catena.cli.session import Session, session_of
from catena.cli.workspace import age
from catena.core.errors import UsageError

Ref = Annotated[str, typer.Argument(metavar="KEY", help="Its id, prefix (ctn_...) or name.")]
FOREVER = "never"


def create(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="What it is for.")],
    role: Annotated[str, typer.Option(help="admin, developer or user.")] = "user",
    subject: Annotated[
        str, typer.Option("--for", metavar="SUBJECT", help="Whom it belongs to; the audit can be erased by it.  [NAME]")
    ] = "",
    models: Annotated[
        list[str] | None, typer.Option("--model", metavar="PATTERN", help="A model it may use: helper, helper:*.")
    ] = None,
    actions: Annotated[
        list[str] | None, typer.Option("--action", metavar="ACTION", help="Only this of what the role may do: infer.")
    ] = None,
    expires: Annotated[str, typer.Option(metavar="AGE", help="90d, 12h, or never.")] = "365d",
) -> None:
    """Make a key and show it, once."""
    from catena.govern.keys import Keys
    from catena.govern.roles import checked_actions, checked_role

    session = session_of(context)
    kind = checked_role(role)
    lifetime = None if expires == FOREVER else _age(expires)
    with session.open() as workspace:
        key, record = Keys(workspace.store.index).create(
            name,
            kind,
            subject=subject,
            models=tuple(models or ("*",)),
            actions=checked_actions(actions or (), kind),
            lifetime=lifetime,
        )
        note(session, workspace, "keys.create", about=record.subject, key=record.id, role=kind)
    _show_new(session, key, record.shown(datetime.now(UTC)))


def show(context: typer.Context) -> None:
    """List the keys, without their secrets."""
    from catena.govern.keys import Keys

    session, at = session_of(context), datetime.now(UTC)
    with session.open() as workspace:
        found = [record.shown(at) for record in Keys(workspace.store.index).all()]
    if session.out.json:
        session.out.value(found)
        return
    rows = [
        (
            key["id"],
            key["name"],
            key["subject"],
            key["role"],
            " ".join(map(str, key["models"])),  # type: ignore[call-overload]
            str(key["created"])[:10],
            str(key["expires"] or FOREVER)[:10],
            key["state"],
        )
        for key in found
    ]
    columns = ("id", "name", "for", "role", "models", "created", "expires", "state")
    session.out.table(columns, rows, empty="there are no keys; make one with: catena keys create NAME")


def revoke(context: typer.Context, key: Ref) -> None:
    """Let a key open nothing any more, by its name also what it replaced; running servers know within seconds."""
    from catena.govern.keys import Keys

    session = session_of(context)
    with session.open() as workspace:
        ended = Keys(workspace.store.index).revoke(key)
        for record in ended:
            note(session, workspace, "keys.revoke", key=record.id)
    if session.out.json:
        also = [record.id for record in ended[1:]]
        session.out.value({**ended[0].shown(datetime.now(UTC)), "also_revoked": also})
        return
    for record in ended:
        session.out.line(f"revoked {record.id} ({record.name})")


def rotate(
    context: typer.Context,
    key: Ref,
    grace: Annotated[str, typer.Option(metavar="AGE", help="How long the old key goes on: 24h.")] = "0s",
) -> None:
    """Make a new key in an old one's place, with the same rights."""
    from catena.govern.keys import Keys

    session = session_of(context)
    with session.open() as workspace:
        secret, record = Keys(workspace.store.index).rotate(key, grace=_age(grace))
        note(session, workspace, "keys.rotate", asked=key, key=record.id, grace=grace)
    _show_new(session, secret, record.shown(datetime.now(UTC)))


def _age(text: str) -> timedelta:
    try:
        return age(text)
    except UsageError as error:
        raise UsageError(error.message, hint="For example: 90d, 12h, 30m.") from error


def _show_new(session: Session, key: str, shown: dict[str, object]) -> None:
    if session.out.json:
        session.out.value({**shown, "key": key})
        return
    session.out.line(key)
    session.out.note(f"role {shown['role']}, for {shown['subject']}, until {shown['expires'] or FOREVER}")
    session.out.note("it is shown only now; keep it where secrets are kept")


COMMANDS = (
    (
        "create",
        create,
        "  catena keys create ada --expires 90d\n"
        "  catena keys create dashboard --role developer --action metrics --for operations\n"
        "  catena keys create shop --model 'shop-helper*' --json",
    ),
    ("list", show, "  catena keys list\n  catena keys list --json"),
    ("revoke", revoke, "  catena keys revoke ada"),
    ("rotate", rotate, "  catena keys rotate ada --grace 24h"),
)
