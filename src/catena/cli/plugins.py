"""`catena plugins list | search | install | sign`: packages that add stages, filters, scorers, engines."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from catena.cli.session import session_of

Index = Annotated[str, typer.Option("--index", metavar="INDEX", help="File or URL of an index.  [plugins.index]")]
Trust = Annotated[
    list[str] | None, typer.Option("--trust", metavar="KEY", help="Public key of a publisher, beside plugins.keys.")
]


def list_(context: typer.Context) -> None:
    """List the plugins that are installed, and what each adds."""
    from catena.govern.plugins import installed

    session, found = session_of(context), installed()
    if session.out.json:
        session.out.value(found)
        return
    rows = [(one["name"], one["version"], " ".join(one["adds"])) for one in found]
    session.out.table(("plugin", "version", "adds"), rows, empty="no plugin is installed")


def search(
    context: typer.Context,
    words: Annotated[list[str] | None, typer.Argument(metavar="[WORD]...", help="In name, summary or kind.")] = None,
    index: Index = "",
    trust: Trust = None,
) -> None:
    """Search an index; says of each plugin whether it is signed by somebody who is trusted here."""
    from catena.govern.plugins import read_index, search as find

    session = session_of(context)
    settings = session.settings().plugins
    found = find(read_index(index or settings.index), " ".join(words or ()))
    trusted = {key.lower() for key in (*settings.keys, *(trust or ()))}

    def state(signed: bool, key: str) -> str:
        return ("trusted" if key in trusted else "not trusted") if signed else "SIGNATURE DOES NOT HOLD"

    rows = [(one, state(one.signed(), one.key)) for one in found]
    if session.out.json:
        session.out.value([{**one.model_dump(mode="json"), "state": said} for one, said in rows])
        return
    table = [(one.name, one.version, one.summary, " ".join(one.adds), f"{said} {one.key[:12]}") for one, said in rows]
    session.out.table(("plugin", "version", "summary", "adds", "signed by"), table, empty="no plugin is like this")


def install(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="A plugin of the index; NAME==VERSION for that one.")],
    index: Index = "",
    trust: Trust = None,
    target: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Not into this environment, but there.")] = None,
    deps: Annotated[
        bool, typer.Option("--deps", help="Let pip also install what it needs, which is not signed.")
    ] = False,
) -> None:
    """Install a plugin of an index, once signature, publisher, size and SHA-256 have been checked."""
    from catena.govern.plugins import install as install_from

    session, (plain, _, version) = session_of(context), name.partition("==")
    settings = session.settings().plugins
    keys = (*settings.keys, *(trust or ()))
    done = install_from(index or settings.index, plain, keys, version=version, target=target, deps=deps)
    if session.out.json:
        session.out.value(done.model_dump(mode="json"))
        return
    session.out.line(f"installed {done.name} {done.version}: {', '.join(done.adds) or 'adds nothing'}")
    if done.requires and not deps:
        session.out.note(f"it needs: {', '.join(done.requires)} (--deps installs them)")


def sign(
    context: typer.Context,
    wheel: Annotated[Path, typer.Argument(metavar="WHEEL", help="The plugin, built: python -m pip wheel --no-deps .")],
    index: Annotated[Path, typer.Option("--index", metavar="FILE", help="The index; made if absent.")],
    key: Annotated[Path, typer.Option("--key", metavar="FILE", help="Your private key; made if absent.")],
) -> None:
    """Put a plugin into an index, signed. What it is and adds is read from the wheel; nothing of it is run."""
    from catena.govern.plugins import sign as sign_with

    session = session_of(context)
    done = sign_with(wheel, index, key)
    if session.out.json:
        session.out.value(done.model_dump(mode="json"))
    else:
        session.out.line(f"{done.name} {done.version} is in {index}, signed by {done.key}")


COMMANDS = (
    ("list", list_, "  catena plugins list"),
    ("search", search, "  catena plugins search filter --index https://plugins.example/index.json"),
    (
        "install",
        install,
        "  catena plugins install catena-example --index index.json --trust 5f1c...\n"
        "  catena plugins install catena-example==0.2 --deps",
    ),
    ("sign", sign, "  catena plugins sign catena_example-0.2-py3-none-any.whl --index index.json --key publisher.key"),
)
