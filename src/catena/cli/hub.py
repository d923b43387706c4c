"""`catena hub serve | list | search | show | card | pull | push`: the workspace as a hub, and other hubs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from catena.cli.session import Session, session_of
from catena.core.errors import UsageError

if TYPE_CHECKING:
    from catena.govern.access import Access
    from catena.govern.config import GovernConfig
    from catena.hub.repo.records import RepoKind
    from catena.hub.store import Store


def serve(
    context: typer.Context,
    host: Annotated[str | None, typer.Option(help="Address to listen on.  [default: 127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 takes any free one.  [default: 8500]")] = None,
    auth: Annotated[bool, typer.Option("--auth", help="Ask for an API key: catena keys create.")] = False,
    public: Annotated[bool, typer.Option("--public", help="With --auth: reading needs no key.")] = False,
    audit: Annotated[bool, typer.Option("--audit", help="Write down every push and removal.")] = False,
    hosts: Annotated[
        list[str] | None, typer.Option("--allow-host", metavar="NAME", help="A further name that it answers to.")
    ] = None,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", metavar="A.B=C", help="Change a setting: hub.inline_bytes=1000000.")
    ] = None,
) -> None:
    """Serve models and datasets to Hugging Face clients until Ctrl-C: they work unchanged with HF_ENDPOINT."""
    from catena.serve.governed import require_auth_beyond
    from catena.serve.hub.app import build_hub
    from catena.serve.server import listen, serve as serve_app

    session = session_of(context)
    switches = {"govern.auth.on": auth, "hub.public": public, "govern.audit.on": audit}
    on = [f"{name}=true" for name, wanted in switches.items() if wanted]
    settings = session.settings((*(assignments or ()), *on))
    bounds, govern = settings.hub, settings.govern
    with session.open(create=True) as workspace, workspace.store.lock("gc", shared=True), ExitStack() as stack:
        listener = stack.enter_context(closing(listen(host or bounds.host, bounds.port if port is None else port)))
        require_auth_beyond(listener, govern)
        access, act = stack.enter_context(_governed(workspace.store, govern))
        allowed = (*settings.serve.hosts, *(hosts or ()))
        app = build_hub(workspace.store, bounds, access=access, hosts=allowed, act=act)
        serve_app(app, listener, config=settings.serve, on_ready=lambda url: _ready(session, url))


@contextmanager
def _governed(store: Store, config: GovernConfig) -> Iterator[tuple[Access | None, Any]]:
    """Open who may ask and what is written down, as the settings say."""
    from catena.govern.access import Access
    from catena.govern.audit.log import Log
    from catena.govern.crypto import open_signer
    from catena.govern.keys import Keys
    from catena.govern.tokens import Tokens

    with ExitStack() as stack:
        log = stack.enter_context(Log(store.root, config.audit)) if config.audit.on else None
        access = None
        if config.auth.on:
            tokens = Tokens(config.auth.jwt) if config.auth.jwt.issuer else None
            access = Access(Keys(store.index).all, store.root, open_signer(store.root), config.auth, tokens).open()
            stack.callback(access.close)
        yield access, (log.act if log is not None else lambda event: None)


def _ready(session: Session, url: str) -> None:
    if session.out.json:
        session.out.value({"url": url})
    else:
        session.out.line(f"hub at {url}: HF_ENDPOINT={url}  (Ctrl-C ends)")


Kind = Annotated[str, typer.Option("--type", metavar="KIND", help="model or dataset.")]
Url = Annotated[str, typer.Option("--hub", metavar="URL", help="The other hub.  [HF_ENDPOINT, https://huggingface.co]")]
Token = Annotated[str, typer.Option(envvar="HF_TOKEN", metavar="TOKEN", show_envvar=False, help="Who asks it.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="owner/name, or a plain name; with @revision.")]


def list_(
    context: typer.Context,
    kind: Annotated[str | None, typer.Argument(metavar="[KIND]", help="model or dataset.")] = None,
    tags: Annotated[
        list[str] | None, typer.Option("--tag", metavar="TAG", help="license:mit, quantized, pickle.")
    ] = None,
) -> None:
    """List the repositories of this hub, the last changed first."""
    _listed(session_of(context), kind, "", tags or ())


def search(
    context: typer.Context,
    words: Annotated[list[str], typer.Argument(metavar="WORD...", help="Each must be in name, tags, licence or form.")],
    kind: Annotated[str | None, typer.Option("--type", metavar="KIND", help="model or dataset.")] = None,
    tags: Annotated[
        list[str] | None, typer.Option("--tag", metavar="TAG", help="license:mit, quantized, pickle.")
    ] = None,
) -> None:
    """Search the repositories of this hub."""
    _listed(session_of(context), kind, " ".join(words), tags or ())


def _listed(session: Session, kind: str | None, words: str, tags: Iterable[str]) -> None:
    from catena.hub.repo.listing import Listing
    from catena.hub.repo.repos import Repos

    wanted = (_kind(kind),) if kind else ("model", "dataset")
    with session.open() as workspace:
        listing = Listing(Repos(workspace.store))
        found = [item for one in wanted for item in listing.find(_kind(one), search=words, tags=tags)]
    if session.out.json:
        session.out.value([{**asdict(item), "tags": list(item.tags)} for item in found])
        return
    rows = [
        (
            item.name,
            item.kind,
            item.about,
            item.license,
            f"{item.bytes / 1e6:,.1f} MB",
            f"{item.changed:%Y-%m-%d %H:%M}",
        )
        for item in found
    ]
    session.out.table(("name", "kind", "what", "licence", "size", "changed"), rows, empty="nothing is like this")


def show(
    context: typer.Context,
    name: Name,
    log: Annotated[bool, typer.Option("--log", help="Show its commits.")] = False,
) -> None:
    """Show a repository: its commit, files, branches and tags."""
    from catena.hub.repo.repos import Repos
    from catena.hub.repo.transfer import kind_of

    session = session_of(context)
    plain, _, revision = name.partition("@")
    with session.open() as workspace:
        repos = Repos(workspace.store)
        kind = kind_of(repos, plain)
        commit = repos.commit(kind, plain, revision or "main")
        refs, history = repos.refs(kind, plain), repos.log(kind, plain, commit.id) if log else []
    files = [{"path": file.path, "size": file.size, "sha256": file.sha256} for file in commit.files]
    record: dict[str, Any] = {"name": plain, "kind": kind, "commit": commit.id, "artifact": commit.artifact}
    record |= {"branches": refs.branches, "tags": refs.tags}
    if session.out.json:
        entries = [{"commit": id, "message": one.message, "by": one.author, "time": one.time} for id, one in history]
        session.out.value({**record, "files": files, **({"log": entries} if log else {})})
        return
    session.out.fields({**record, "branches": ", ".join(refs.branches), "tags": ", ".join(refs.tags)})
    if log:
        lines = [(id[:12], f"{one.time:%Y-%m-%d %H:%M}", one.author, one.message) for id, one in history]
        session.out.table(("commit", "time", "by", "message"), lines)
    else:
        session.out.table(("file", "bytes", "sha256"), [(f["path"], f["size"], str(f["sha256"])[:12]) for f in files])


def card(
    context: typer.Context,
    name: Name,
    file: Annotated[Path | None, typer.Option("--write", metavar="FILE", help="Write it there.")] = None,
    language: Annotated[str, typer.Option("--language", metavar="en|zh", help="Of the text.")] = "en",
) -> None:
    """Print the card of a model or dataset, written from its lineage: data, licences, config, scores, change log."""
    from catena.core.language import LANGUAGES
    from catena.core.types import Report
    from catena.hub.repo.card import card as written

    session = session_of(context)
    spoken = next((one for one in LANGUAGES if one == language), None)
    if spoken is None:
        raise UsageError(f"there are no cards in {language!r}", hint="Say --language en or --language zh.")
    with session.open() as workspace:
        artifact = workspace.store.resolve(name)
        if isinstance(artifact, Report):
            raise UsageError(f"{name!r} is a report", hint="Cards are of models and datasets.")
        text = written(workspace.store, artifact, name.partition("@")[0], language=spoken)
    if file is not None:
        file.write_text(text, encoding="utf-8")
        session.out.note(f"wrote {file}")
    elif session.out.json:
        session.out.value({"name": name, "card": text})
    else:
        session.out.line(text)


def move(
    context: typer.Context,
    old: Annotated[str, typer.Argument(metavar="OLD", help="What it is called now.")],
    new: Annotated[str, typer.Argument(metavar="NEW", help="What it shall be called: name or owner/name.")],
    kind: Kind = "model",
) -> None:
    """Rename a model or dataset of this workspace with all its versions; clients of its hub are led to the new name."""
    from catena.cli.data import who
    from catena.hub.repo.moving import rename
    from catena.hub.repo.repos import Repos

    session = session_of(context)
    with session.open() as workspace:
        rename(Repos(workspace.store), _kind(kind), old, new, by=who(""))
    if session.out.json:
        session.out.value({"kind": kind, "old": old, "new": new})
    else:
        session.out.line(f"{old} is {new} now")


def pull(
    context: typer.Context,
    repo: Annotated[str, typer.Argument(metavar="REPO", help="owner/name on the other hub; with @revision.")],
    kind: Kind = "model",
    name: Annotated[str, typer.Option("--as", metavar="NAME", help="What it is called here.  [its own name]")] = "",
    hub: Url = "",
    token: Token = "",
) -> None:
    """Bring a model or dataset of another hub into this workspace; its run says from where."""
    from catena.cli.data import who
    from catena.hub.repo.repos import Repos
    from catena.hub.repo.transfer import Hub, pull as pull_from

    session, (plain, _, revision) = session_of(context), repo.partition("@")
    with session.open(create=True) as workspace:
        repos = Repos(workspace.store)
        options: dict[str, Any] = {"kind": _kind(kind), "revision": revision or "main", "name": name, "by": who("")}
        done = pull_from(repos, Hub(hub, token), plain, **options)
    if session.out.json:
        session.out.value(asdict(done))
        return
    what = f"version {done.artifact[:12]}" if done.artifact else "files (no version: no whole model or known rows)"
    session.out.line(f"{done.name}: {done.files} files of {plain} at {done.commit[:12]}, {what}")


def push(
    context: typer.Context,
    name: Name,
    to: Annotated[str, typer.Option("--as", metavar="REPO", help="owner/name on the other hub.  [its own name]")] = "",
    private: Annotated[bool, typer.Option("--private", help="Where it is made: for its owner only.")] = False,
    message: Annotated[str, typer.Option("--message", "-m", metavar="TEXT", help="Of the commit there.")] = "",
    hub: Url = "",
    token: Token = "",
) -> None:
    """Put a model or dataset of this workspace, with its card, on another hub."""
    from catena.hub.repo.repos import Repos
    from catena.hub.repo.transfer import Hub, kind_of, push as push_to

    session = session_of(context)
    with session.open() as workspace:
        repos = Repos(workspace.store)
        kind, other = kind_of(repos, name.partition("@")[0]), Hub(hub, token)
        commit = push_to(repos, other, name, kind=kind, to=to, private=private, message=message)
    target = to or name.partition("@")[0]
    if session.out.json:
        session.out.value({"hub": other.url, "repo": target, "kind": kind, "commit": commit})
    else:
        session.out.line(f"{name} is {target} at {other.url} ({commit[:12]})")


def _kind(text: str) -> RepoKind:
    if text == "model" or text == "dataset":
        return text  # type: ignore[return-value]
    raise UsageError(f"{text!r} is not a kind of repository", hint="Kinds: model, dataset.")


COMMANDS = (
    (
        "serve",
        serve,
        "  catena hub serve\n"
        "  catena hub serve --host 0.0.0.0 --port 8500 --auth --public\n"
        '  HF_ENDPOINT=http://127.0.0.1:8500 python -c "import transformers; ..."',
    ),
    ("list", list_, "  catena hub list\n  catena hub list model --tag license:mit --json"),
    ("search", search, "  catena hub search llama int4\n  catena hub search pages --type dataset"),
    ("show", show, "  catena hub show team/helper\n  catena hub show team/helper@production --log"),
    ("card", card, "  catena hub card team/helper --language zh\n  catena hub card team/helper@3 --write README.md"),
    ("move", move, "  catena hub move helper team/helper\n  catena hub move pages team/pages --type dataset"),
    (
        "pull",
        pull,
        "  catena hub pull Qwen/Qwen3-0.6B --as qwen\n"
        "  catena hub pull team/pages@v2 --type dataset --hub http://hub.example:8500",
    ),
    (
        "push",
        push,
        "  catena hub push team/helper@production --hub http://hub.example:8500\n"
        "  catena hub push helper --as ada/helper --private",
    ),
)
