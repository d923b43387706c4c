"""`catena bench`: how fast a model runs here, and how a server stands a load."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from catena.cli.session import Session, session_of

app = typer.Typer(
    name="bench",
    help="Measure a model beside the machine's limits, or a server.",
    rich_markup_mode=None,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
Columns = Sequence[tuple[str, str]]
ROOF: Columns = (
    ("batch", "batch_size"),
    ("prefill tok/s", "prefill_tokens_per_s"),
    ("% of matmul", "prefill_share"),
    ("decode tok/s", "decode_tokens_per_s"),
    ("step ms", "step_ms"),
    ("read MB/step", "step_mb"),
    ("GB/s", "read_gb_per_s"),
    ("% of bandwidth", "decode_share"),
)


@app.callback(
    epilog="\b\nExamples:\n  catena bench --model python-helper --batch-size 1 --batch-size 16\n"
    "  catena bench --model ./folder --precision int8 --device cpu --json\n"
    "  catena bench serve python-helper --concurrency 1 --concurrency 64 --plot load.svg"
)
def bench(
    context: typer.Context,
    model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="name, name@tag, a digest's start, or a model's folder.")
    ] = None,
    batch_size: Annotated[
        list[int] | None, typer.Option(metavar="B", help="Sequences at once; may be given again.  [default: 1]", min=1)
    ] = None,
    device: Annotated[str, typer.Option(metavar="D", help="cpu, cuda, cuda:1.")] = "cpu",
    precision: Annotated[
        str, typer.Option(metavar="P", help="auto, float32, bfloat16; int8, w8a8 and int4 round first.")
    ] = "auto",
    prompt_tokens: Annotated[
        int | None,
        typer.Option(metavar="N", help="Tokens of each prompt.  [default: 128, fewer in a short context]", min=1),
    ] = None,
    new_tokens: Annotated[
        int | None,
        typer.Option(metavar="N", help="Tokens of each answer.  [default: 32, fewer in a short context]", min=2),
    ] = None,
) -> None:
    """Measure a model: prompts and answers a second, beside what this machine reads and multiplies at most."""
    from catena.core.errors import UsageError
    from catena.core.generate import BENCHES

    if context.invoked_subcommand is not None:
        if model is not None:
            raise UsageError("--model belongs to `catena bench` alone", hint="catena bench serve MODEL")
        return
    if model is None:
        raise UsageError("which model? --model is missing", hint="catena bench --model python-helper")
    session = session_of(context)
    with ExitStack() as stack:
        result = BENCHES.load("native")(
            _folder(session, stack, model),
            batch_sizes=batch_size or [1],
            device=device,
            precision=precision,
            prompt_tokens=prompt_tokens,
            new_tokens=new_tokens,
        )
    if session.out.json:
        session.out.value(result)
        return
    session.out.note(
        f"{result['model']}, {result['weights_bytes'] / 1e6:.1f} MB of weights in {result['format']}, "
        f"{result['threads']} threads"
    )
    if result["shortened"]:
        lengths = result["config"]
        session.out.note(
            f"the context is {result['context']} tokens: prompts of {lengths['prompt_tokens']} and answers of "
            f"{lengths['new_tokens']} are measured"
        )
    session.out.table([title for title, _ in ROOF], [[_cell(row, key) for _, key in ROOF] for row in result["rows"]])


def _folder(session: Session, stack: ExitStack, model: str) -> Path:
    from catena.core.types import ModelVersion

    if (Path(model) / "config.json").is_file():
        return Path(model)
    workspace = stack.enter_context(session.open())
    stack.enter_context(workspace.store.lock("gc", shared=True))
    return workspace.store.checkout(workspace.store.resolve(model, ModelVersion))


def _cell(row: dict[str, Any], key: str) -> str:
    value = row[key]
    if value is None:
        return "-"
    return f"{value:.0%}" if key.endswith("_share") else f"{value:g}"


@app.command(
    "serve",
    epilog="\b\nExamples:\n  catena bench serve python-helper --rate 100 --requests 500\n"
    "  catena bench serve --url http://127.0.0.1:8000 --name helper --concurrency 1 --concurrency 1000 --plot load.svg",
)
def bench_serve(
    context: typer.Context,
    model: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="A model to start a server for; without it, --url.")
    ] = None,
    url: Annotated[str | None, typer.Option(metavar="URL", help="Load this server instead.")] = None,
    name: Annotated[str | None, typer.Option(metavar="NAME", help="The model's name at --url.")] = None,
    requests: Annotated[int | None, typer.Option(metavar="N", help="Requests at each concurrency.", min=1)] = None,
    rate: Annotated[float | None, typer.Option(metavar="R", help="Requests a second; 0: as fast as it goes.")] = None,
    concurrency: Annotated[
        list[int] | None, typer.Option(metavar="C", help="Most at once; may be given again.  [default: 64]", min=1)
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(metavar="N", help="Longest answer, in tokens.", min=1)] = None,
    goodput: Annotated[
        list[str] | None, typer.Option(metavar="A=MS", help="A limit that counts: ttft=200, tpot=50, e2el=2000.")
    ] = None,
    prompts: Annotated[Path | None, typer.Option(metavar="FILE", help="A prompt in each line.")] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw it, as SVG.")] = None,
    options: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="A=B", help="Any other field: burstiness=0.5, route=completions."),
    ] = None,
) -> None:
    """Load a server with streamed requests and tell throughput, TTFT, TPOT, percentiles and goodput."""
    from catena.core.config import override, parse
    from catena.core.errors import UsageError
    from catena.serve.load import LoadConfig, run_load

    session = session_of(context)
    if (model is None) == (url is None):
        raise UsageError("either a model or --url is wanted", hint="catena bench serve python-helper")
    given: dict[str, Any] = {
        "model": name or (model or "").partition("@")[0],
        "requests": requests,
        "rate": rate,
        "concurrency": concurrency,
        "max_tokens": max_tokens,
        "prompts": _lines(prompts),
        **_limits(goodput or ()),
    }
    values = override({key: value for key, value in given.items() if value is not None}, options or ())
    config = parse(LoadConfig, values, where="bench serve")
    if not config.model:
        raise UsageError("which model of the server? --name is missing", hint="catena bench serve --url URL --name M")
    with ExitStack() as stack:
        result = run_load(url or _started(session, stack, model or "", max(config.concurrency)), config)
    if plot is not None:
        from catena.serve.load_plot import draw

        draw(result, plot)
    if session.out.json:
        session.out.value(result)
        return
    session.out.table(["", *(f"C={level['concurrency']}" for level in result["levels"])], _rows(result["levels"]))
    for level in result["levels"]:
        if level["failed"]:
            session.out.note(f"C={level['concurrency']}: failed {orjson.dumps(level['failed']).decode()}")


def _started(session: Session, stack: ExitStack, model: str, most: int) -> str:
    """Serve a model from this process while the stack is open; return the URL."""
    from catena.core.generate import GENERATORS
    from catena.core.types import ModelVersion
    from catena.serve.app import build_app
    from catena.serve.server import background

    workspace = stack.enter_context(session.open())
    stack.enter_context(workspace.store.lock("gc", shared=True))
    version = workspace.store.resolve(model, ModelVersion)
    generator = GENERATORS.load("auto")(workspace.store.checkout(version), max_waiting=max(256, most))
    stack.callback(generator.close)
    settings = session.settings().serve
    settings = settings.model_copy(update={"max_connections": max(settings.max_connections, most + 16)})
    app = build_app({model.partition("@")[0]: generator}, config=settings)
    return stack.enter_context(background(app, config=settings))


def _lines(path: Path | None) -> list[str] | None:
    from catena.core.errors import UsageError

    if path is None:
        return None
    try:
        found = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
    if not found:
        raise UsageError(f"{path} holds no prompt")
    return found


def _limits(texts: Sequence[str]) -> dict[str, str]:
    """Read `ttft=200` as the field `ttft_ms`."""
    from catena.core.errors import UsageError

    found: dict[str, Any] = {}
    for text in texts:
        key, _, value = text.partition("=")
        if key not in ("ttft", "tpot", "e2el"):
            raise UsageError(f"--goodput {text!r} is no limit", hint="ttft=200, tpot=50 or e2el=2000, in milliseconds.")
        try:
            found[f"{key}_ms"] = float(value)
        except ValueError as error:
            raise UsageError(f"--goodput {text!r}: {value!r} is no number", hint="For example ttft=200.") from error
    return found


def _rows(levels: Sequence[dict[str, Any]]) -> list[list[str]]:
    rows = [
        [title, *(f"{level[key]:g}" for level in levels)]
        for title, key in (
            ("completed", "completed"),
            ("requests/s", "requests_per_s"),
            ("goodput/s", "goodput_per_s"),
            ("output tok/s", "output_tokens_per_s"),
        )
    ]
    for title, key in (("TTFT", "ttft_ms"), ("TPOT", "tpot_ms"), ("ITL", "itl_ms"), ("E2EL", "e2el_ms")):
        for one in ("mean", "p50", "p95", "p99"):
            rows.append([f"{title} {one} ms", *(f"{level[key][one]:.1f}" if level[key] else "-" for level in levels)])
    return rows
