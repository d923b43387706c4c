"""Command: advise, which model to take for a task on a machine, how to serve and train it, how fast, at what cost."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from catena.cli.session import session_of

if TYPE_CHECKING:
    from catena.cli.out import Out
    from catena.flow.advisor.advise import Advice, Candidate
    from catena.flow.advisor.reckon import Number

SHOWN = 8


def advise(
    context: typer.Context,
    task: Annotated[str, typer.Option(metavar="TASK", help="chat, code, translation, classification, ...")] = "chat",
    language: Annotated[str, typer.Option(metavar="CODES", help="Languages that it has to know: zh,en.")] = "en",
    gpu: Annotated[str | None, typer.Option(metavar="NAME:N", help="A GPU of the table, and how many.")] = None,
    cpu: Annotated[bool, typer.Option("--cpu", help="This machine's processor, measured.")] = False,
    latency: Annotated[str | None, typer.Option(metavar="TIME", help="To the first token at most: 200ms.")] = None,
    users: Annotated[int | None, typer.Option(metavar="N", help="Requests at the same time.  [default: 8]")] = None,
    price: Annotated[float | None, typer.Option(metavar="X", help="What an hour of one GPU costs.")] = None,
    budget: Annotated[
        str | None, typer.Option(metavar="X", help="At most: 2000 for the training, 1500/month for serving.")
    ] = None,
    model: Annotated[str | None, typer.Option(metavar="NAME", help="Only this one of the table.")] = None,
    models: Annotated[Path | None, typer.Option(metavar="FILE", help="Further models, as YAML.")] = None,
    gpus: Annotated[Path | None, typer.Option(metavar="FILE", help="Further GPUs, as YAML.")] = None,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", metavar="A=C", help="Change an assumption: bandwidth_share=0.7.")
    ] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Show every number with its formula and inputs.")] = False,
) -> None:
    """Say which open model fits a task and a machine. How to serve and train it, how fast, at what cost."""
    from catena.core.config import override
    from catena.flow.advisor.advise import advise as found

    given: dict[str, Any] = {"task": task, "language": language, "gpu": gpu, "cpu": cpu, "latency": latency}
    given |= {"models_file": models, "gpus_file": gpus}
    fields = {"users": users, "price": price, "budget": budget, "model": model}
    advice = found(
        **override({**given, **{name: one for name, one in fields.items() if one is not None}}, assignments or ())
    )
    out = session_of(context).out
    if out.json:
        out.value(advice.record())
    else:
        _show(out, advice, explain=explain)
    raise typer.Exit(0 if advice.choice is not None else 4)


def _show(out: Out, advice: Advice, *, explain: bool) -> None:
    best = advice.choice or advice.nearest
    assert best is not None
    if advice.choice is not None:
        out.fields(_facts(advice, best))
        out.line()
    out.line(advice.why)
    others = [one for one in advice.candidates if one is not best][:SHOWN]
    if others:
        out.line()
        out.table(("also looked at", "format", "gpus", "memory GB", "tokens/s", "first s", "why not"), map_rows(others))
    if explain:
        out.line()
        for number in (*best.serving.numbers, *(best.training.numbers if best.training else ())):
            out.line(number.line())


def map_rows(candidates: list[Candidate]) -> list[tuple[Any, ...]]:
    """Return a row of the table for each candidate."""
    rows = []
    for one in candidates:
        serving = one.serving
        speed = next((found for found in serving.numbers if found.name in ("tokens", "texts")), None)
        numbers = (
            f"{serving.value('memory'):.3g}",
            f"{speed.value:.3g}" if speed else "",
            f"{serving.value('latency'):.3g}",
        )
        rows.append((one.name, serving.format.name, serving.used, *numbers, "; ".join(one.problems) or "fits too"))
    return rows


def _facts(advice: Advice, best: Candidate) -> dict[str, Any]:
    model, serving, training = best.model, best.serving, best.training
    numbers = {one.name: one for one in (*serving.numbers, *(training.numbers if training else ()))}
    shared = f"{serving.replicas} x tensor parallel {serving.tensor}"
    facts = {
        "model": f"{best.name}, {model.parameters / 1e9:.3g} billion parameters, licence {model.licence}",
        "class": f"{model.kind} ({model.source})",
        "serve": f"{serving.format.name}, {shared}, {advice.need.users} users",
        "memory": _said(numbers, "memory", f"of {advice.machine.gpu.memory:.4g} GB a GPU"),
        "first token" if best.lengths.new else "answer": _said(numbers, "latency", f"for {best.lengths.prompt} tokens"),
        "each user": _said(numbers, "user_tokens", "tokens"),
        "together": _said(numbers, "tokens", "tokens") or _said(numbers, "texts", "texts"),
        "cost": _said(numbers, "cost_month", "a month") or "unknown: give --price",
        "a million tokens": _said(numbers, "cost_million_tokens", ""),
        "energy": _said(numbers, "energy_day", "a day at full power"),
    }
    if training is None:
        return facts
    tokens = f"for {advice.need.train_tokens:.3g} tokens"
    return {
        **facts,
        "train": f"{advice.task.stage}, {training.way}, {training.plan}",
        "train memory": _said(numbers, "train_memory", "a GPU"),
        "train speed": _said(numbers, "train_tokens_s", "tokens"),
        "train time": _said(numbers, "train_hours", tokens),
        "train cost": _said(numbers, "train_cost", tokens) or _said(numbers, "train_gpu_hours", "of GPUs"),
    }


def _said(numbers: dict[str, Number], name: str, words: str) -> str:
    from catena.flow.advisor.reckon import shown

    found = numbers.get(name)
    return "" if found is None else " ".join(filter(None, (shown(found.value), found.unit, words)))


COMMANDS = (
    (
        "advise",
        advise,
        "  catena advise --task chat --language zh --gpu a100:2 --latency 200ms\n"
        "  catena advise --task classification --language zh --cpu --explain\n"
        "  catena advise --gpu h100:8 --price 2.5 --budget 9000/month --json",
    ),
)
