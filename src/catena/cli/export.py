"""A command about models that leave: export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, cast

import typer

from catena.cli.session import session_of
from catena.core.errors import UsageError

Format = Literal["gguf", "onnx"]


def export(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="name, name@tag, name@version or a digest's start.")],
    format: Annotated[Format, typer.Option(help="For llama.cpp and Ollama, or for onnxruntime.")] = "gguf",
    type: Annotated[
        str | None, typer.Option(metavar="TYPE", help="f32, f16, bf16, q8_0, q4_0.  [default: f16; f32 for ONNX]")
    ] = None,
    cache: Annotated[
        bool, typer.Option("--cache", help="ONNX: keys and values come in and go out, to generate token by token.")
    ] = False,
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="What it is called.  [default: MODEL-FORMAT]")
    ] = None,
    to: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Copy the files there as well.")] = None,
) -> None:
    """Write a model as a file for another program: GGUF or ONNX."""
    import shutil

    from catena.cli.views import artifact_line
    from catena.core.types import ModelVersion

    session = session_of(context)
    config = {"format": format, "cache": cache, **({"type": type} if type else {})}
    called = name or f"{model.partition('@')[0]}-{type or format}"
    with session.open() as workspace, session.listeners() as listeners:
        if to is not None and to.exists() and any(to.iterdir()):
            raise UsageError(f"{to} is not empty", hint="Name a new folder.")
        made = cast(
            "ModelVersion", workspace.do("compress.export", {"model": model}, config, name=called, listeners=listeners)
        )
        folder = workspace.store.checkout(made)
        if to is not None:
            shutil.copytree(folder, to, dirs_exist_ok=True)
        place = to or folder
        ref = [f"{row.name}@{row.version}" for row in workspace.store.index.versions(digest=made.digest)][-1]
    files = [str(place / file.path) for file in made.files if file.path.startswith("model.")]
    if session.out.json:
        session.out.value({"ref": ref, "digest": made.digest, "files": files})
    else:
        session.out.line(artifact_line(ref, made))
        for file in files:
            session.out.line(file)


EXAMPLES = """\
  catena export python-helper@production --type q8_0 --to helper-gguf
  catena export python-helper --format onnx --cache"""
COMMANDS = (("export", export, EXAMPLES),)
