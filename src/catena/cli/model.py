"""Commands about models at work: chat, serve."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from catena.cli.deploy import run_replicas, with_grpc
from catena.cli.session import Session, session_of
from catena.core.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from catena.cli.chat import Answer
    from catena.core.types import ModelVersion
    from catena.govern.config import GovernConfig
    from catena.hub.examples import Example
    from catena.hub.store import Store
    from catena.settings import ServeSettings

OWN = ("auto", "native", "seq2seq", "embed", "classify")
"""Generators that are ours; the others are engines of their own."""
ModelRef = Annotated[str, typer.Argument(metavar="MODEL", help="name, name@tag, name@version or a digest's start.")]


def chat(
    context: typer.Context,
    model: ModelRef,
    questions: Annotated[
        list[str] | None, typer.Argument(metavar="[QUESTION]...", help="Without one, questions are read line by line.")
    ] = None,
    examples: Annotated[
        int, typer.Option(metavar="N", min=0, help="Ask N questions that were kept back when it was trained.")
    ] = 0,
    url: Annotated[str | None, typer.Option(metavar="URL", help="Ask this server instead of starting one.")] = None,
    max_tokens: Annotated[
        int | None, typer.Option(metavar="N", help="Longest answer, in tokens; by default the server's limit.")
    ] = None,
) -> None:
    """Ask a model, and see which pages it learnt that from. Each question stands by itself.

    With --examples it is asked what its data know the answer to, and every answer is held against that.
    """
    from catena.cli.chat import Answer, ask, connect, opened_server
    from catena.core.types import ModelVersion
    from catena.hub.examples import held_out
    from catena.hub.lineage import answer_sources

    session = session_of(context)
    out, name = session.out, model.partition("@")[0]
    with session.open() as workspace, ExitStack() as stack:
        version = workspace.store.resolve(model, ModelVersion)
        known = held_out(workspace.store, version, examples) if examples else []
        where = url or stack.enter_context(opened_server(workspace.store, version, name))
        client = stack.enter_context(connect(where, loopback=url is None))

        def answer(question: str, known: Example | None = None) -> Answer:
            show: Callable[[str], None] = (lambda piece: None) if out.json else out.piece
            text = ask(client, name, question, max_tokens=max_tokens, show=show)
            found = Answer(question, text, answer_sources(workspace.store, version, text))
            return replace(found, expected=known.expected, as_expected=known.is_answered_by(text)) if known else found

        asked = questions or (() if known else _typed(session))
        answers = [_shown(session, question, partial(answer, question)) for question in asked]
        answers += [_shown(session, one.question, partial(answer, one.question, one)) for one in known]
    if out.json:
        out.value([asdict(answer) for answer in answers])


def _shown(session: Session, question: str, answer: Callable[[], Answer]) -> Answer:
    if session.out.json:
        return answer()
    session.out.line(f"? {question}")
    found = answer()
    below = [found.learnt_from(), found.judged()]
    session.out.line("".join(f"\n  {line}" for line in below if line) + "\n")
    return found


def _typed(session: Session) -> Iterator[str]:
    """Yield what a person types, or what a pipe holds, until the end of it or an empty line on a terminal."""
    import sys

    terminal = sys.stdin.isatty()
    if terminal:
        session.out.note("Ask; an empty line ends.")
    for line in sys.stdin:
        question = line.strip()
        if question:
            yield question
        elif terminal:
            return


def serve(
    context: typer.Context,
    model: ModelRef,
    host: Annotated[str | None, typer.Option(help="Address to listen on.  [default: 127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 takes any free one.  [default: 8000]")] = None,
    adapters: Annotated[
        list[str] | None, typer.Option("--adapter", metavar="NAME=MODEL", help="A LoRA beside it: MODEL:NAME answers.")
    ] = None,
    backend: Annotated[
        str, typer.Option(metavar="NAME", help="Who runs it: native, vllm, sglang, llama.cpp, openai and others.")
    ] = "auto",
    options: Annotated[
        list[str] | None, typer.Option("--engine", metavar="A=C", help="Change how it runs: max_running=16.")
    ] = None,
    called: Annotated[
        str | None, typer.Option("--as", metavar="NAME", help="What requests call it.  [default: its own name]")
    ] = None,
    replicas: Annotated[
        int | None, typer.Option(metavar="N", help="So many processes of it behind one address; see `catena up`.")
    ] = None,
    grpc: Annotated[
        int | None, typer.Option("--grpc", metavar="PORT", help="Answer over gRPC too, on the same address.")
    ] = None,
    hosts: Annotated[
        list[str] | None, typer.Option("--allow-host", metavar="NAME", help="A further name that it answers to.")
    ] = None,
    auth: Annotated[bool, typer.Option("--auth", help="Ask for an API key: catena keys create.")] = False,
    audit: Annotated[bool, typer.Option("--audit", help="Write down what is asked and answered.")] = False,
    moderation: Annotated[bool, typer.Option("--moderation", help="Look through what is asked and answered.")] = False,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", metavar="A.B=C", help="Change a setting: serve.port=9000.")
    ] = None,
) -> None:
    """Serve a model behind the OpenAI API until Ctrl-C. Chat, completions, embeddings, decisions, by what it is."""
    from catena.core.config import override

    session = session_of(context)
    switches = {"auth": auth, "audit": audit, "moderation": moderation}
    settings, rules = _settings(session, assignments or (), hosts or (), switches)
    name, place = called or model.partition("@")[0], (host or settings.host, settings.port if port is None else port)
    if replicas is not None:
        _refuse_backend(backend)
        one = {"model": model, "adapters": dict(_pairs(adapters or ())), "engine": override({}, options or ())}
        run_replicas(session, name, {**one, "replicas": replicas}, place, (settings, rules), grpc)
        return
    engine = (backend, override({}, options or ()))
    _serve_one(session, (name, model, dict(_pairs(adapters or ()))), engine, place, (settings, rules), grpc)


def _serve_one(
    session: Session,
    named: tuple[str, str, Mapping[str, str]],
    engine: tuple[str, dict[str, Any]],
    place: tuple[str, int],
    bounds: tuple[ServeSettings, GovernConfig],
    grpc: int | None,
) -> None:
    """Serve a model (name, reference, adapters) from this process."""
    from catena.core.types import ModelVersion
    from catena.serve.app import build_app
    from catena.serve.governed import governed, require_auth_beyond
    from catena.serve.running import Running, announced
    from catena.serve.server import listen, serve as serve_app, url_of

    (name, model, adapters), (settings, rules) = named, bounds
    with session.open() as workspace, workspace.store.lock("gc", shared=True):
        version = workspace.store.resolve(model, ModelVersion)
        others = {key: workspace.store.resolve(ref, ModelVersion) for key, ref in adapters.items()}
        # The port first: whether it is free is known at once, and loading a model takes its time.
        listener = listen(*place)
        require_auth_beyond(listener, rules)
        with (
            closing(listener),
            announced(workspace.store.root) as announce,
            governed(workspace.store, rules, settings) as middleware,
            closing(_opened(workspace.store, version, others, *engine)) as generator,
        ):
            models, prints = {name: generator}, {name: version.digest}
            found = partial(_adapter_folder, workspace.store)
            app = build_app(models, fingerprints=prints, config=settings, middleware=middleware, adapters=found)
            beside = with_grpc(session, app, (place[0], grpc), settings)

            def ready(url: str) -> None:
                announce(Running(url_of(listener), (name,), time.time(), replicas=False))
                _ready(session, name, version.digest, url)

            serve_app(app, listener, config=settings, on_ready=ready, beside=beside)


def _settings(
    session: Session, assignments: Iterable[str], hosts: Iterable[str], switches: Mapping[str, bool]
) -> tuple[ServeSettings, GovernConfig]:
    """Return what holds for a server; a switch that is on wins over the settings, and hosts come to theirs."""
    on = [f"govern.{name}.on=true" for name, wanted in switches.items() if wanted]
    found = session.settings((*assignments, *on))
    return found.serve.model_copy(update={"hosts": (*found.serve.hosts, *hosts)}), found.govern


def _refuse_backend(backend: str) -> None:
    if backend != "auto":
        raise UsageError("--replicas are of Catena's own engine", hint="Leave --backend out, or --replicas.")


def _pairs(texts: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield (name, model) of each `name=model`; raises `UsageError`."""
    for text in texts:
        name, sign, ref = text.partition("=")
        if not (name and sign and ref):
            raise UsageError(f"--adapter {text!r} has no name", hint="Write NAME=MODEL: --adapter french=french-lora.")
        yield name, ref


def _opened(
    store: Store, version: ModelVersion, beside: Mapping[str, ModelVersion], backend: str, options: dict[str, Any]
) -> Any:
    """Open a model with adapters beside it: other engines are started with them, ours takes them afterwards."""
    from catena.core.generate import GENERATORS

    folders = {key: store.checkout(adapter) for key, adapter in beside.items()}
    if backend not in OWN:
        return GENERATORS.load(backend)(
            store.checkout(version), **options, **({"adapters": folders} if folders else {})
        )
    generator = GENERATORS.load(backend)(store.checkout(version), **options)
    try:
        for key, folder in folders.items():
            if not hasattr(generator, "load_adapter"):
                raise UsageError(
                    "this model takes no adapters beside it", hint="Merge the adapter (train.merge) and serve that."
                )
            generator.load_adapter(key, folder)
    except BaseException:
        generator.close()
        raise
    return generator


def _adapter_folder(store: Store, ref: str) -> Path:
    """Return the folder of a stored adapter; what else is stored under the name, the engine refuses."""
    from catena.core.types import ModelVersion

    return store.checkout(store.resolve(ref, ModelVersion))


def _ready(session: Session, name: str, digest: str, url: str) -> None:
    if session.out.json:
        session.out.value({"url": f"{url}/v1", "model": name, "digest": digest})
    else:
        session.out.line(f"{name} ({digest[:12]}) answers at {url}/v1  (Ctrl-C ends)")


SERVE_EXAMPLES = """\
  catena serve python-helper@production
  catena serve python-helper --host 0.0.0.0 --port 9000 --auth
  catena serve python-helper --replicas 2 --auth --audit --moderation
  catena serve python-helper@production --grpc 50051
  catena serve base --adapter french=french-lora --engine cache_format=int8
  catena serve base --backend llama.cpp --engine gguf_type=q8_0
  catena serve python-helper --allow-host models.example --set serve.max_connections=4000"""
CHAT_EXAMPLES = """\
  catena chat python-helper@production 'What does json.loads do?'
  catena chat python-helper@production --examples 3
  catena chat python-helper --url http://127.0.0.1:8000
  catena chat python-helper 'What does os.walk do?' --json"""
COMMANDS = (("chat", chat, CHAT_EXAMPLES), ("serve", serve, SERVE_EXAMPLES))
