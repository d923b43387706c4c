"""Command: evaluate, a model on tasks, beside another one, or all of them in a table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from catena.cli.session import session_of
from catena.core.errors import UsageError

if TYPE_CHECKING:
    from catena.cli.session import Session
    from catena.core.types import Score
    from catena.workspace import Evaluated

LEADERBOARD = "leaderboard"


def evaluate(
    context: typer.Context,
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="name, name@tag, a digest's start; or `leaderboard`: all scores.")
    ],
    tasks: Annotated[
        str | None, typer.Option(metavar="LIST", help="Shipped tasks and suites, task files: basics,gsm8k,./mine.yaml")
    ] = None,
    data: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Where the files of shipped tasks are.")] = None,
    limit: Annotated[int | None, typer.Option(metavar="N", min=1, help="At most so many rows of each task.")] = None,
    compare: Annotated[str | None, typer.Option(metavar="MODEL", help="Measure this one too, and compare.")] = None,
    chat: Annotated[
        bool | None, typer.Option("--chat/--no-chat", help="Ask through the chat template.  [default: as tasks say]")
    ] = None,
    judge: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Who judges: a stored model, or http://host:8000/v1#NAME.")
    ] = None,
    backend: Annotated[
        str, typer.Option(metavar="NAME", help="Who runs the model: native, vllm, llama.cpp, openai.")
    ] = "native",
    options: Annotated[
        list[str] | None, typer.Option("--engine", metavar="A=C", help="Change how it runs: max_running=16.")
    ] = None,
    uncontained: Annotated[
        bool, typer.Option("--allow-uncontained-code", help="Run programs even where they cannot be contained.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of which rows, and of what is sampled.")] = 0,
    report: Annotated[Path | None, typer.Option(metavar="FILE", help="Where to write the page (HTML).")] = None,
    summary: Annotated[Path | None, typer.Option(metavar="FILE", help="Where to write the scores as Markdown.")] = None,
) -> None:
    """Measure a model on tasks; compare two; show all scores."""
    from catena.core.config import override

    session = session_of(context)
    if model == LEADERBOARD:
        _leaderboard(session, tasks, report)
        return
    if not tasks:
        raise UsageError("which tasks? --tasks is missing", hint="For example: --tasks basics; --tasks list shows all")
    if tasks == "list":
        _list(session)
        return
    named = [one.strip() for one in tasks.split(",") if one.strip()]
    fields: dict[str, Any] = {
        "data": str(data) if data is not None else None,
        "limit": limit,
        "chat": chat,
        "generator": backend,
        "engine": override({}, options or ()),
        "uncontained_code": uncontained or None,
    }
    with session.open() as workspace, session.listeners() as listeners:
        found = workspace.evaluate(
            model, named, compare=compare, judge=judge, seed=seed, report=report, listeners=listeners, **fields
        )
    if summary is not None:
        from catena.flow.evaluation_text import write_summary

        write_summary(summary, (model, compare or ""), found.report, found.other, found.comparison)
    _show(session, model, compare, found, report)


def _show(session: Session, model: str, compare: str | None, found: Evaluated, page: Path | None) -> None:
    out = session.out
    if out.json:
        out.value(
            {
                "model": model,
                "ref": found.run.names["scores"],
                "scores": {name: score.model_dump() for name, score in found.scores.items()},
                "tasks": found.report.details["tasks"],
                "notes": found.report.details["notes"],
                "compared": None if found.comparison is None else _compared(found),
                "report": None if page is None else str(page),
            }
        )
        return
    if found.other is None or found.comparison is None:
        rows = [(name, _value(score), _ends(score), score.n, score.unit) for name, score in found.scores.items()]
        out.table(("score", "value", "95 %", "n", "unit"), rows)
    else:
        gains, p = found.comparison.scores, found.comparison.details["p_values"]
        out.table(
            ("score", model, str(compare), "gain", "95 %", "p"),
            [
                (name, _value(found.scores[name]), _value(other), _value(gain), _ends(gain), f"{p[name]:.3g}")
                for name, other in found.other.scores.items()
                if (gain := gains.get(f"gain/{name}")) is not None
            ],
        )
    for task, notes in found.report.details["notes"].items():
        out.note(f"{task}: " + ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in notes.items()))
    if page is not None:
        out.note(f"report {page}")


def _compared(found: Evaluated) -> dict[str, Any]:
    assert found.other is not None
    assert found.comparison is not None
    p_values = found.comparison.details["p_values"]
    return {
        name: {
            "other": found.other.scores[name].value,
            "gain": found.comparison.scores[f"gain/{name}"].model_dump(include={"value", "low", "high"}),
            "p_value": p_value,
        }
        for name, p_value in p_values.items()
    }


def _leaderboard(session: Session, tasks: str | None, page: Path | None) -> None:
    from catena.flow.evaluation import standings

    with session.open() as workspace:
        rows = [one for task in (tasks or "").split(",") for one in standings(workspace.store, task.strip() or None)]
        if page is not None:
            from catena.flow.evaluation_page import write_leaderboard

            write_leaderboard(rows, page)
    if session.out.json:
        keys = ("model", "digest", "task", "score_name", "way", "made")
        session.out.value([{**{key: getattr(one, key) for key in keys}, **one.score.model_dump()} for one in rows])
        return
    session.out.table(
        ("task", "way", "model", "score", "value", "95 %", "n"),
        [
            (one.task, one.way, one.model, one.score_name, _value(one.score), _ends(one.score), one.score.n)
            for one in rows
        ],
        empty="nothing was evaluated on tasks yet",
    )


def _list(session: Session) -> None:
    from catena.evaluate.taskfile import described

    rows = described()
    if session.out.json:
        session.out.value(rows)
        return
    session.out.table(
        ("name", "kind", "language", "needs", "description"),
        [(row["name"], row["kind"], row["language"], row["needs"], row["description"]) for row in rows],
    )


def _value(score: Score) -> str:
    return f"{score.value:,.0f}" if abs(score.value) >= 1e5 else f"{score.value:.4g}"


def _ends(score: Score) -> str:
    return "" if score.low is None or score.high is None else f"{score.low:.4g} to {score.high:.4g}"


COMMANDS = (
    (
        "evaluate",
        evaluate,
        "  catena evaluate helper --tasks basics,basics-zh --report scores.html\n"
        "  catena evaluate helper --tasks gsm8k,mmlu --data ~/benchmarks --limit 200\n"
        "  catena evaluate helper-4bit --tasks ./mine.yaml --compare helper\n"
        "  catena evaluate leaderboard",
    ),
)
