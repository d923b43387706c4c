"""`catena release start | status | promote | rollback`: a new model beside the old one, on a gateway that runs."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from typing import Annotated, Any

import typer
import yaml

from catena.cli.session import Session, session_of
from catena.core.errors import ConfigError, NotFound, RemoteError, UsageError

KEY = "CATENA_KEY"
Model = Annotated[str, typer.Argument(metavar="MODEL", help="The name that requests say.")]
Gateway = Annotated[str, typer.Option("--gateway", metavar="URL", help=f"The gateway; {KEY} holds its key.")]
Reason = Annotated[str, typer.Option("--reason", metavar="TEXT", help="For the change log.")]
HERE = "http://127.0.0.1:8000"


def start(
    context: typer.Context,
    model: Model,
    candidate: Annotated[str, typer.Argument(metavar="CANDIDATE", help="A stored model, or one of `candidates`.")],
    mode: Annotated[str, typer.Option(help="shadow, canary or ab.")] = "canary",
    assignments: Annotated[
        list[str] | None, typer.Option("--set", metavar="A.B=C", help="Change a value: steps=[1,10,50], step_s=600.")
    ] = None,
    gateway: Gateway = HERE,
) -> None:
    """Give a model's candidate its first users; it goes on, or back, by itself."""
    from catena.core.config import override

    release = override({"mode": mode}, assignments or ())
    body = {"model": model, "candidate": candidate, "release": release}
    _show(session_of(context), _ask(gateway, "/admin/releases", body))


def status(
    context: typer.Context,
    model: Annotated[str | None, typer.Argument(metavar="[MODEL]", help="By default all, and the change log.")] = None,
    gateway: Gateway = HERE,
) -> None:
    """Show how releases stand."""
    session = session_of(context)
    told = _ask(gateway, f"/admin/releases/{model}" if model else "/admin/releases")
    if model or session.out.json:
        _show(session, told)
        return
    for one in told["releases"]:
        _show(session, one)
    rows = [(one["time"], one["act"], one["model"], one["by"], one.get("reason", "")) for one in told["changes"]]
    session.out.table(("time", "act", "model", "by", "why"), rows, empty="no release yet")


def promote(context: typer.Context, model: Model, reason: Reason = "", gateway: Gateway = HERE) -> None:
    """Give everybody the candidate now."""
    _show(session_of(context), _ask(gateway, f"/admin/releases/{model}", {"act": "promote", "reason": reason}))


def rollback(context: typer.Context, model: Model, reason: Reason = "", gateway: Gateway = HERE) -> None:
    """Give nobody the candidate any more."""
    _show(session_of(context), _ask(gateway, f"/admin/releases/{model}", {"act": "rollback", "reason": reason}))


def _show(session: Session, told: dict[str, Any]) -> None:
    if session.out.json:
        session.out.value(told)
        return
    signals = told.pop("signals", None) or {}
    session.out.fields(told)
    rows = [
        (name, *(f"{one[arm]['yes']}/{one[arm]['of']}" for arm in ("stable", "candidate")), one["log_evidence"])
        for name, one in signals.items()
    ]
    if rows:
        session.out.table(("signal", "stable", "candidate", "log evidence"), rows)


def _ask(gateway: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """Ask the gateway. Raises its own refusals, and `RemoteError` where it is away."""
    if not gateway.startswith(("http://", "https://")):
        raise UsageError(f"{gateway!r} is no URL", hint=f"For example: --gateway {HERE}")
    headers = {"content-type": "application/json"}
    if key := os.environ.get(KEY):
        headers["authorization"] = f"Bearer {key}"
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(gateway.rstrip("/").removesuffix("/v1") + path, data, headers)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({})) if "127.0.0.1" in gateway else None
    try:
        with (opener.open if opener else urllib.request.urlopen)(request, timeout=30) as response:
            told = json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            raise _refusal(error.code, error.read()) from error
    except (OSError, ValueError) as error:
        raise RemoteError(f"no gateway answers at {gateway}", hint="Is it running? `catena up deploy.yaml`.") from error
    return dict(told)


def _refusal(status: int, body: bytes) -> Exception:
    try:
        message = str(yaml.safe_load(body)["error"]["message"])
    except (yaml.YAMLError, KeyError, TypeError):
        message = f"the gateway answered {status}"
    kinds = {404: NotFound, 400: UsageError, 422: ConfigError}
    return kinds.get(status, RemoteError if status >= 500 else UsageError)(message)


COMMANDS = (
    (
        "start",
        start,
        "  catena release start helper python-helper@7\n"
        "  catena release start helper python-helper@7 --mode shadow\n"
        "  catena release start helper python-helper@7 --set 'steps=[1,10,50]' --set step_s=900",
    ),
    ("status", status, "  catena release status\n  catena release status helper --json"),
    ("promote", promote, "  catena release promote helper --reason 'shown to be good'"),
    ("rollback", rollback, "  catena release rollback helper --reason 'complaints'"),
)
