"""Command: compress, a model made smaller, and what it costs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from catena.cli.session import session_of
from catena.core.errors import UsageError


def compress(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="name, name@tag, name@version or a digest's start.")],
    method: Annotated[
        str | None,
        typer.Option(
            metavar="METHOD",
            help="rtn, awq, gptq, smoothquant, w8a8, fp8, fp8-dynamic, nvfp4; magnitude, wanda, sparsegpt, heads, "
            "width, layers; fuse.",
        ),
    ] = None,
    bits: Annotated[int | None, typer.Option(help="8 or 4, for rtn, awq, gptq.")] = None,
    sparsity: Annotated[str | None, typer.Option(metavar="SHARE", help="What pruning takes away: 0.5, or 2:4.")] = None,
    group: Annotated[int | None, typer.Option(help="Inputs that share a scale in 4 bits.  [default: 128]")] = None,
    data: Annotated[str | None, typer.Option(metavar="DATASET", help="To calibrate with (its split train).")] = None,
    test: Annotated[
        str | None, typer.Option(metavar="DATASET", help="To measure perplexity on; else the split test of --data.")
    ] = None,
    task: Annotated[
        str | None, typer.Option(metavar="DATASET", help="Conversations to measure answers on, but for train.")
    ] = None,
    compare: Annotated[
        str | None,
        typer.Option(metavar="LIST", help="Several versions side by side: int8,awq:4,gptq:4,wanda:2:4,layers:0.25"),
    ] = None,
    name: Annotated[str | None, typer.Option(metavar="NAME", help="What the smaller model is called.")] = None,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Set a value of the stage's config.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of what is drawn: calibration text.")] = 0,
    report: Annotated[Path | None, typer.Option(metavar="FILE", help="Where to write the report (HTML).")] = None,
) -> None:
    """Make a model smaller, and measure it before and after. Several ways can be compared."""
    session = session_of(context)
    wanted = _wanted(method, bits, sparsity, compare)
    values = [*(assignments or ()), *([f"group_size={group}"] if group else [])]
    with session.open() as workspace, session.listeners() as listeners:
        found = workspace.compress(
            model,
            wanted,
            data=data,
            test=test,
            task=task,
            name=name,
            overrides=values,
            seed=seed,
            report=report,
            listeners=listeners,
        )
    rows = [_row(version, found.run.names[version], made) for version, made in found.reports.items()]
    if session.out.json:
        session.out.value({"versions": rows, "report": str(found.run.report)})
        return
    columns = list(dict.fromkeys(name for row in rows for name in row["after"]))
    session.out.table(
        ("version", *columns, "stored as"),
        [("before", *(_shown(rows[0]["before"].get(key)) for key in columns), model)]
        + [(row["version"], *(_shown(row["after"].get(key)) for key in columns), row["ref"]) for row in rows],
    )
    session.out.note(f"report {found.run.report}")


def _wanted(method: str | None, bits: int | None, sparsity: str | None, compare: str | None) -> list[str]:
    """Return the versions that are asked for, each as METHOD or METHOD:AMOUNT."""
    if (method is None) == (compare is None):
        raise UsageError(
            "say what is to be done: --method, or --compare for several",
            hint="For example: --method awq --bits 4, or --compare int8,awq:4,gptq:4",
        )
    if compare is not None:
        if bits or sparsity:
            raise UsageError("--compare says the amounts itself", hint="For example: --compare gptq:4,wanda:0.5")
        return [one.strip() for one in compare.split(",") if one.strip()]
    if bits and sparsity:
        raise UsageError("--bits is for rounding and --sparsity for pruning; give one of them")
    amount = bits or sparsity
    return [f"{method}:{amount}" if amount else str(method)]


def _row(version: str, ref: str, made: Any) -> dict[str, Any]:
    return {"version": version, "ref": ref, "before": made.details["before"], "after": made.details["after"]}


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"


COMMANDS = (
    (
        "compress",
        compress,
        "  catena compress helper --method awq --bits 4 --data corpus --name helper-4bit\n"
        "  catena compress helper --method layers --sparsity 0.25 --data corpus\n"
        "  catena compress helper --compare int8,gptq:4,awq:4 --data corpus --task questions --report report.html",
    ),
)
