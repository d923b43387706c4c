"""`catena jobs submit | list | show | cancel`: batches of a gateway that runs."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from catena.cli.release import HERE, KEY, Gateway
from catena.cli.session import Session, session_of
from catena.core.errors import CatenaError, NotFound, UsageError

if TYPE_CHECKING:
    from catena.sdk import Batch, Catena

Job = Annotated[str, typer.Argument(metavar="JOB", help="The batch's id: batch_...")]


def submit(
    context: typer.Context,
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="Requests, one JSON object a line, as OpenAI's Batch API.")
    ],
    endpoint: Annotated[str, typer.Option(metavar="PATH", help="What each line asks.")] = "/v1/chat/completions",
    window: Annotated[str, typer.Option(metavar="AGE", help="It must be done within: 24h, 90m, 7d.")] = "24h",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Wait, and write the answers here.")
    ] = None,
    gateway: Gateway = HERE,
) -> None:
    """Give a gateway a file of requests to answer in its own time."""
    session = session_of(context)
    if not file.is_file():
        raise NotFound(f"there is no file {file}", hint="One JSON object a line; docs/jobs.md shows one.")
    if output is not None and output.exists():
        raise UsageError(f"{output} is there already", hint="Name another file, or remove it.")
    with _client(gateway) as client:
        batch = client.submit_job(file, endpoint, window=window)
        if output is not None:
            session.out.note(f"{batch.id}: waiting; Ctrl-C leaves it to the gateway")
            batch = client.wait_job(batch.id)
            _write(client, batch, output)
        _show(session, batch)
        if batch.status == "failed" or (output is not None and batch.status != "completed"):
            raise typer.Exit(CatenaError.exit_code)


def show_all(
    context: typer.Context,
    limit: Annotated[int, typer.Option(min=1, max=100, help="Most of them.")] = 20,
    gateway: Gateway = HERE,
) -> None:
    """List batches, newest first."""
    session = session_of(context)
    with _client(gateway) as client:
        found = client.jobs(limit=limit)
    if session.out.json:
        session.out.value([batch.model_dump(mode="json") for batch in found])
        return
    rows = [(one.id, one.status, one.endpoint, _done(one), _time(one.created_at)) for one in found]
    columns = ("id", "status", "endpoint", "done", "created")
    session.out.table(
        columns, rows, empty="there are no jobs of this key (CATENA_KEY); give one with: catena jobs submit FILE"
    )


def show(context: typer.Context, job: Job, gateway: Gateway = HERE) -> None:
    """Show how a batch stands."""
    with _client(gateway) as client:
        _show(session_of(context), client.job(job))


def cancel(context: typer.Context, job: Job, gateway: Gateway = HERE) -> None:
    """End a batch; what is answered already stays."""
    with _client(gateway) as client:
        _show(session_of(context), client.cancel_job(job))


def _client(gateway: str) -> Catena:
    from catena.sdk import Catena

    return Catena(gateway, key=os.environ.get(KEY, ""))


def _show(session: Session, batch: Batch) -> None:
    if session.out.json:
        session.out.value(batch.model_dump(mode="json"))
        return
    session.out.fields(
        {
            "id": batch.id,
            "status": batch.status,
            "endpoint": batch.endpoint,
            "done": _done(batch),
            "created": _time(batch.created_at),
            "expires": _time(batch.expires_at),
            "input": batch.input_file_id,
            "output": batch.output_file_id,
            "errors": batch.error_file_id,
        }
    )
    rows = [(one.get("line"), one.get("code"), one.get("message")) for one in (batch.errors or {}).get("data", ())]
    if rows:
        session.out.table(("line", "code", "problem"), rows)


def _write(client: Catena, batch: Batch, output: Path) -> None:
    import json

    with output.open("x", encoding="utf-8") as stream:
        for line in client.job_results(batch):
            stream.write(json.dumps(line, ensure_ascii=False) + "\n")


def _done(batch: Batch) -> str:
    counts = batch.request_counts
    failed = f", {counts.failed} failed" if counts.failed else ""
    return f"{counts.completed + counts.failed} of {counts.total}{failed}"


def _time(seconds: int | None) -> str:
    return "" if not seconds else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


COMMANDS = (
    (
        "submit",
        submit,
        "  catena jobs submit questions.jsonl\n"
        "  catena jobs submit questions.jsonl --output answers.jsonl\n"
        "  catena jobs submit texts.jsonl --endpoint /v1/embeddings --window 7d --json",
    ),
    ("list", show_all, "  catena jobs list\n  catena jobs list --json"),
    ("show", show, "  catena jobs show batch_5e1c"),
    ("cancel", cancel, "  catena jobs cancel batch_5e1c --gateway http://gateway:8000"),
)
