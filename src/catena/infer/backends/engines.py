"""How each engine is started: from a model folder and the settings to a command line, and a generator over it.

| name      | started as                        | asked at            | tells log-probabilities           |
|-----------|-----------------------------------|---------------------|-----------------------------------|
| openai    | runs already                      | OpenAI's API        | of prompts, where it has `echo`   |
| vllm      | vllm serve                        | /v1/completions     | of answers and prompts            |
| sglang    | python -m sglang.launch_server    | /generate           | of answers and prompts            |
| lmdeploy  | lmdeploy serve api_server         | /generate           | of answers, the chosen token only |
| llama.cpp | llama-server                      | /completion         | of answers                        |
| openvino  | ovms                              | OpenAI's API at /v3 | none                              |
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from catena.core.config import parse
from catena.core.errors import EnvironmentProblem, NotFound, UsageError
from catena.infer.backends.config import Dialect, LaunchConfig, UrlConfig
from catena.infer.backends.llama_cpp import LlamaCpp
from catena.infer.backends.native import LMDeploy, SGLang
from catena.infer.backends.openai import VLLM, OpenAI
from catena.infer.backends.process import HOST, Command, Patience, start
from catena.infer.backends.remote import RemoteGenerator
from catena.infer.backends.under_way import Place
from catena.infer.backends.wire import Wire
from catena.infer.codec import ModelCodec
from catena.models.checkpoint import read_config
from catena.models.heads import context_of
from catena.models.tokenizer import load_tokenizer

SERVED_AS = "model"
DIALECTS: dict[Dialect, Callable[[], Wire]] = {
    "openai": OpenAI,
    "vllm": VLLM,
    "sglang": SGLang,
    "lmdeploy": LMDeploy,
    "llama.cpp": LlamaCpp,
}
AT_ROOT = ("sglang", "lmdeploy", "llama.cpp")
"""Dialects whose paths do not stand under /v1."""
OFFLINE = {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"}


@dataclass(frozen=True, slots=True)
class Spec:
    """What an engine is to serve."""

    folder: Path
    config: LaunchConfig
    program: Path
    context: int | None
    port: int


@dataclass(frozen=True, slots=True)
class Launcher:
    """One engine."""

    name: str
    program: str
    """What its own program is called."""
    module: str
    """What its Python runs in place of the program; empty: it is no Python program."""
    wire: Callable[[], Wire]
    command: Callable[[Spec], Command]
    base: str
    """What stands before the paths of calls."""
    install: str
    """What a person does to have it."""
    adapters: bool = False


def vllm(spec: Spec) -> Command:
    """`vllm serve`, one model under one name."""
    config = spec.config
    flags = [*_run(spec, "vllm.entrypoints.cli.main"), "serve", str(spec.folder), *_listen(spec)]
    flags += [
        "--served-model-name",
        SERVED_AS,
        "--generation-config",
        "vllm",
        "--max-num-seqs",
        str(config.max_running),
    ]
    flags += _given("--max-model-len", spec.context) + _given("--dtype", config.dtype)
    flags += _given("--gpu-memory-utilization", config.memory_share) + _given("--kv-cache-dtype", config.cache_format)
    if config.tensor_parallel > 1:
        flags += ["--tensor-parallel-size", str(config.tensor_parallel)]
    if config.adapters:
        named = [f"{name}={folder}" for name, folder in config.adapters.items()]
        flags += ["--enable-lora", "--lora-modules", *named]
    return Command(
        [*flags, *config.arguments], "/health", {**OFFLINE, "VLLM_NO_USAGE_STATS": "1", **config.environment}
    )


def sglang(spec: Spec) -> Command:
    """`python -m sglang.launch_server`."""
    config = spec.config
    flags = [*_run(spec, "sglang.launch_server"), "--model-path", str(spec.folder), *_listen(spec)]
    flags += ["--served-model-name", SERVED_AS, "--max-running-requests", str(config.max_running)]
    flags += _given("--context-length", spec.context) + _given("--dtype", config.dtype)
    flags += _given("--mem-fraction-static", config.memory_share) + _given("--kv-cache-dtype", config.cache_format)
    flags += _given("--device", config.device)
    if config.tensor_parallel > 1:
        flags += ["--tp-size", str(config.tensor_parallel)]
    if config.adapters:
        flags += ["--lora-paths", *(f"{name}={folder}" for name, folder in config.adapters.items())]
    return Command([*flags, *config.arguments], "/health_generate", {**OFFLINE, **config.environment})


def lmdeploy(spec: Spec) -> Command:
    """`lmdeploy serve api_server`."""
    config = spec.config
    flags = [*_run(spec, "lmdeploy"), "serve", "api_server", str(spec.folder)]
    flags += ["--server-name", HOST, "--server-port", str(spec.port), "--model-name", SERVED_AS]
    flags += ["--max-batch-size", str(config.max_running), "--logprobs-mode", "raw_logprobs"]
    flags += _given("--session-len", spec.context) + _given("--dtype", config.dtype)
    flags += _given("--cache-max-entry-count", config.memory_share) + _given("--quant-policy", config.cache_format)
    flags += _given("--device", config.device)
    if config.tensor_parallel > 1:
        flags += ["--tp", str(config.tensor_parallel)]
    return Command([*flags, *config.arguments], "/health", {**OFFLINE, **config.environment})


def llama_cpp(spec: Spec) -> Command:
    """`llama-server` on a GGUF file. Each of its slots has a context of its own, so they add up."""
    config = spec.config
    [file] = sorted(spec.folder.glob("*.gguf"))[:1]
    flags = [str(spec.program), "--model", str(file), *_listen(spec), "--alias", SERVED_AS]
    flags += ["--parallel", str(config.max_running), "--no-kv-unified", "--metrics", "--no-webui", "--offline"]
    flags += ["--ctx-size", str((spec.context or 4096) * config.max_running)]
    if config.cache_format:
        flags += ["--cache-type-k", config.cache_format, "--cache-type-v", config.cache_format]
    flags += _given("--device", config.device)
    return Command([*flags, *config.arguments], "/health", dict(config.environment))


def openvino(spec: Spec) -> Command:
    """`ovms`, OpenVINO's model server, on a folder that was converted for it (optimum-intel)."""
    config = spec.config
    flags = [str(spec.program), "--model_path", str(spec.folder), "--model_name", SERVED_AS]
    flags += ["--task", "text_generation", "--rest_port", str(spec.port), "--rest_bind_address", HOST]
    flags += _given("--target_device", config.device)
    return Command([*flags, *config.arguments], "/v2/health/ready", dict(config.environment))


LAUNCHERS: dict[str, Launcher] = {
    "vllm": Launcher("vLLM", "vllm", "vllm.entrypoints.cli.main", VLLM, vllm, "/v1", "pip install vllm", True),
    "sglang": Launcher("SGLang", "", "sglang.launch_server", SGLang, sglang, "", "pip install sglang", True),
    "lmdeploy": Launcher("LMDeploy", "lmdeploy", "lmdeploy", LMDeploy, lmdeploy, "", "pip install lmdeploy"),
    "llama.cpp": Launcher(
        "llama.cpp", "llama-server", "", LlamaCpp, llama_cpp, "", "build it: scripts/llama-cpp in Catena's sources"
    ),
    "openvino": Launcher(
        "OpenVINO", "ovms", "", OpenAI, openvino, "/v3", "get the OpenVINO model server (ovms) for this system"
    ),
}


def variable(name: str) -> str:
    """Return the environment's variable that says where an engine is."""
    return f"CATENA_BACKENDS_{name.replace('.', '_').upper()}"


def program_of(name: str, wanted: str) -> Path:
    """Return the program of an engine, or the Python of its environment; raises `EnvironmentProblem` without one."""
    launcher = LAUNCHERS[name]
    said = wanted or os.environ.get(variable(name), "")
    if not said:
        found = shutil.which(launcher.program, path=_search_path(name)) if launcher.program else None
        if found is None:
            raise EnvironmentProblem(
                f"{launcher.name} is not here",
                hint=f"In an environment of its own: {launcher.install}. Then say where: the setting backends."
                f"{name.replace('.', '_')}, or --engine program=FOLDER.",
            )
        return Path(found)
    path = Path(said).expanduser()
    if path.is_dir():
        own = path / "bin" / launcher.program if launcher.program else None
        path = own if own is not None and own.exists() else path / "bin" / "python"
    if not os.access(path, os.X_OK) or path.is_dir():
        raise EnvironmentProblem(
            f"{launcher.name} is to be started with {path}, which is no program", hint=f"See {variable(name)}."
        )
    return path


def _search_path(name: str) -> str:
    """Return where programs are looked for: on the path, then where the script of the sources builds llama.cpp."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    own = [str(cache / "catena" / "llama.cpp" / "bin")] if name == "llama.cpp" else []
    return os.pathsep.join([os.environ.get("PATH", os.defpath), *own])


def open_url(folder: Path | str, **options: Any) -> RemoteGenerator:
    """Return a generator over an engine that runs already; `folder` is the model's, for its tokenizer, or the URL."""
    given = {"url": str(folder), **options} if str(folder).startswith(("http://", "https://")) else dict(options)
    config = parse(UrlConfig, given, where="engine")
    if not config.url.startswith(("http://", "https://")):
        raise UsageError("the engine's URL is not known", hint="Say it: --engine url=http://127.0.0.1:8000/v1")
    known = config.tokenizer or (Path(folder) if "url" in options else None)
    codec = codec_of(known) if known is not None else None
    if config.context is None and known is not None:
        config = config.model_copy(update={"context": _context(known)})
    url = config.url.rstrip("/")
    if config.dialect in AT_ROOT:
        url = url.removesuffix("/v1")
    key = os.environ.get(config.key_env, "")
    return RemoteGenerator(DIALECTS[config.dialect](), Place(url, key), config, codec)


def open_vllm(folder: Path, **options: Any) -> RemoteGenerator:
    """Start vLLM on a model folder; `options` are the fields of `LaunchConfig`."""
    return launch("vllm", folder, options)


def open_sglang(folder: Path, **options: Any) -> RemoteGenerator:
    """Start SGLang on a model folder; `options` are the fields of `LaunchConfig`."""
    return launch("sglang", folder, options)


def open_lmdeploy(folder: Path, **options: Any) -> RemoteGenerator:
    """Start LMDeploy on a model folder; `options` are the fields of `LaunchConfig`."""
    return launch("lmdeploy", folder, options)


def open_openvino(folder: Path, **options: Any) -> RemoteGenerator:
    """Start OpenVINO's model server on a converted folder; `options` are the fields of `LaunchConfig`."""
    if not any(folder.glob("*.xml")):
        raise UsageError(
            f"{folder} is not in OpenVINO's format", hint="Convert it: optimum-cli export openvino --model FOLDER OUT"
        )
    return launch("openvino", folder, options)


def open_llama_cpp(folder: Path, **options: Any) -> RemoteGenerator:
    """Start llama.cpp on a GGUF folder, or on a model that is written as GGUF first (option `gguf_type`)."""
    if any(folder.glob("*.gguf")):
        return launch("llama.cpp", folder, options)
    from catena.models.gguf.write import write_folder

    config = parse(LaunchConfig, options, where="engine")
    program_of("llama.cpp", config.program)  # before the work
    made = tempfile.TemporaryDirectory(prefix="catena-gguf-")
    try:
        write_folder(folder, Path(made.name), config.gguf_type)
        return launch("llama.cpp", Path(made.name), options, clean=made.cleanup)
    except BaseException:
        made.cleanup()
        raise


def launch(
    name: str, folder: Path, options: dict[str, Any], *, clean: Callable[[], None] = lambda: None
) -> RemoteGenerator:
    """Start an engine and return a generator over it, once it is ready.

    Raises `EnvironmentProblem` where it is not installed, ends, or is not ready in time, with its log's last lines.
    """
    launcher = LAUNCHERS[name]
    config = parse(LaunchConfig, options, where="engine")
    if config.adapters and not launcher.adapters:
        raise UsageError(f"{launcher.name} takes no adapters here", hint="Merge the adapter (train.merge).")
    program = program_of(name, config.program)
    codec = codec_of(folder)
    context = config.context or _context(folder)
    config = config.model_copy(update={"context": context, "model": config.model or SERVED_AS})

    def command_for(port: int) -> Command:
        return launcher.command(Spec(folder, config, program, context, port))

    patience = Patience(config.start_timeout_s, config.stop_timeout_s)
    process = start(launcher.name, command_for, config.port, patience)
    try:
        alive = process.url + command_for(process.port).ready
        place = Place(process.url + launcher.base, "", process, alive, clean)
        return RemoteGenerator(launcher.wire(), place, config, codec)
    except BaseException:
        process.stop()
        raise


def codec_of(folder: Path) -> ModelCodec:
    """Return how a model reads text, from its folder without its weights."""
    if not folder.is_dir():
        raise NotFound(f"there is no folder {folder}")
    tokenizer = load_tokenizer(folder)
    settings = read_config(folder)
    generation = folder / "generation_config.json"
    ends = _ends(settings, generation, tokenizer)
    rows = settings.get("vocab_size") or (settings.get("text_config") or {}).get("vocab_size") or len(tokenizer)
    return ModelCodec(tokenizer, int(rows), ends)


def _ends(settings: dict[str, Any], generation: Path, tokenizer: Any) -> frozenset[int]:
    import json

    ends = settings.get("eos_token_id")
    if generation.exists():
        ends = json.loads(generation.read_text(encoding="utf-8")).get("eos_token_id", ends)
    if ends is None:
        ends = tokenizer.eos_token_id
    return frozenset() if ends is None else frozenset(ends if isinstance(ends, list) else [ends])


def _context(folder: Path) -> int | None:
    try:
        return context_of(read_config(folder)) or None
    except (NotFound, KeyError):
        return None


def _run(spec: Spec, module: str) -> list[str]:
    """Return how the program begins: itself, or a Python with its module."""
    own = spec.program.name
    return [str(spec.program), "-m", module] if own.startswith("python") else [str(spec.program)]


def _listen(spec: Spec) -> list[str]:
    return ["--host", HOST, "--port", str(spec.port)]


def _given(flag: str, value: object) -> list[str]:
    return [] if value in (None, "", "auto") else [flag, str(value)]
