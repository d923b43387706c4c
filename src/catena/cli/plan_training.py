"""`catena plan-training`: how to share a training among GPUs, what each way costs, and why one is picked."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from catena.cli.session import session_of
from catena.core.registry import Registry

# By name: the command line imports nothing that may import torch, and the planner stands beside the training.
PLANNERS = Registry("planner", {"training": "catena.train.planner:plan_named"})
SHOWN = 12
COLUMNS = ("plan", "micro-batch", "again", "memory GB", "model", "activations", "sent GB", "step s", "fits")


def plan_training(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A preset, or the folder of a model.")],
    gpus: Annotated[int | None, typer.Option(metavar="N", help="GPUs altogether.")] = None,
    memory: Annotated[float | None, typer.Option(metavar="GB", help="Memory of one GPU.")] = None,
    link: Annotated[float | None, typer.Option(metavar="GB/S", help="Speed between two GPUs.")] = None,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", metavar="A=C", help="Change a value: sequence_length=8192.")
    ] = None,
    vocabulary: Annotated[int | None, typer.Option(metavar="N", help="Tokens; default: the model's own.")] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Show every formula.")] = False,
    every: Annotated[bool, typer.Option("--all", help="Show every candidate, not the best only.")] = False,
) -> None:
    """Say what each way to share a training costs, and pick one. The cost is memory, traffic and time."""
    from catena.core.config import override

    given = {name: value for name, value in (("gpus", gpus), ("memory", memory), ("link", link)) if value is not None}
    planning = PLANNERS.load("training")(model, override(given, assignments or []), vocabulary)
    out = session_of(context).out
    records = [item.record() for item in planning.candidates]
    if out.json:
        picked = planning.picked.record() if planning.picked else None
        facts = {
            "model": model,
            "parameters": planning.shape.parameters,
            "config": planning.config.model_dump(mode="json"),
        }
        formulas = {"formulas": planning.formulas} if explain else {}
        out.value({**facts, "picked": picked, "why": planning.why, "candidates": records, **formulas})
        return
    out.note(f"{model}: {planning.shape.parameters / 1e9:.3g} billion parameters")
    out.table(COLUMNS, [_row(record) for record in (records if every else records[:SHOWN])])
    if len(records) > SHOWN and not every:
        out.note(f"{len(records) - SHOWN} more: --all")
    if explain:
        out.fields(planning.formulas)
    out.line(planning.why)


def _row(record: dict[str, Any]) -> tuple[Any, ...]:
    layout = record["layout"]
    model = record["weights"] + record["gradients"] + record["optimizer"]
    return (
        record["label"],
        layout["micro_batch"],
        "yes" if layout["checkpointing"] else "",
        f"{record['memory'] / 1e9:.1f}",
        f"{model / 1e9:.1f}",
        f"{(record['activations'] + record['logits']) / 1e9:.1f}",
        f"{record['traffic_bytes'] / 1e9:.1f}",
        f"{record['seconds']:.3g}",
        "yes" if record["fits"] else "no",
    )


COMMANDS = (
    (
        "plan-training",
        plan_training,
        "  catena plan-training llama-8b --gpus 8 --memory 80 --link 64\n"
        "  catena plan-training qwen3-14b --gpus 64 --set sequence_length=8192 --set node_link=450 --explain",
    ),
)
