"""Root settings: where the workspace is and what commands take when nothing is said.

Later ones win: the defaults here, `catena.yaml` beside the workspace, `CATENA_*` in the environment
(`CATENA_SERVE_PORT` is `serve.port`), `a.b=c` on the command line.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field

from catena.core.config import Config, describe, override, parse
from catena.core.errors import ConfigError
from catena.govern.config import GovernConfig, PluginsConfig
from catena.serve.config import ServeConfig
from catena.serve.hub.config import HubConfig

FILE = "catena.yaml"
PREFIX = "CATENA_"


class ServeSettings(ServeConfig):
    """Where `catena serve` listens, and its bounds."""

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 lets other machines in."""
    port: int = Field(default=8000, ge=0, le=65535)
    """Port; 0 takes any free one."""


class HubSettings(HubConfig):
    """Where `catena hub serve` listens, and its bounds."""

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 lets other machines in."""
    port: int = Field(default=8500, ge=0, le=65535)
    """Port; 0 takes any free one."""


class ConsoleSettings(Config):
    """Where `catena console` listens, and what it stands beside."""

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 lets other machines in, once the workspace has keys."""
    port: int = Field(default=8600, ge=0, le=65535)
    """Port; 0 takes any free one."""
    gateway: str = ""
    """URL of the gateway that runs; empty: none."""
    session_hours: float = Field(default=12.0, gt=0)
    """How long a browser stays signed in, in hours."""
    recipes: Path | None = None
    """Folder of the recipes that people edit; none: `recipes` beside the workspace."""


class TrackSettings(Config):
    """Where runs are written down beside the workspace."""

    tensorboard: Path | None = None
    """Folder for TensorBoard's files; none: nothing is written."""
    mlflow: str = ""
    """MLflow tracking URI; empty: nothing is sent."""


class BackendsSettings(Config):
    """Where other engines are: a program, the Python of an environment, or the environment's folder."""

    vllm: str = ""
    """vLLM; empty: what is on the path."""
    sglang: str = ""
    """SGLang; it has no program of its own, so its environment must be named."""
    lmdeploy: str = ""
    """LMDeploy; empty: what is on the path."""
    llama_cpp: str = ""
    """llama.cpp's `llama-server`; empty: what is on the path."""
    openvino: str = ""
    """OpenVINO's model server `ovms`; empty: what is on the path."""

    def export(self, environment: MutableMapping[str, str]) -> None:
        """Put them where generators look: a stage that opens one knows no settings, and its key must not hold them."""
        for name, value in self.model_dump().items():
            if value:
                environment[f"{PREFIX}BACKENDS_{name.upper()}"] = value


class Settings(Config):
    """Everything that is set once and not in a recipe."""

    workspace: Path | None = None
    """The workspace's folder; without it, the nearest `.catena` at or above the current folder."""
    index: str = ""
    """SQLAlchemy URL of the index for new workspaces; empty: SQLite inside the workspace."""
    files: str = ""
    """fsspec URL of the files for new workspaces; empty: a folder inside the workspace."""
    serve: ServeSettings = ServeSettings()
    hub: HubSettings = HubSettings()
    console: ConsoleSettings = ConsoleSettings()
    track: TrackSettings = TrackSettings()
    backends: BackendsSettings = BackendsSettings()
    govern: GovernConfig = GovernConfig()
    plugins: PluginsConfig = PluginsConfig()


def load_settings(
    *,
    workspace: Path | None = None,
    environment: Mapping[str, str],
    assignments: Sequence[str] = (),
    start: Path | None = None,
) -> Settings:
    """Read the settings that hold in `start` (default: the current folder).

    `workspace` is what was asked for by hand. Raises `ConfigError` that names the place of a wrong value.
    """
    here = start or Path.cwd()
    asked = workspace or (Path(environment[PREFIX + "WORKSPACE"]) if environment.get(PREFIX + "WORKSPACE") else None)
    root = _workspace_folder(asked) if asked else _nearest(here)
    file = (root.parent if root else here) / FILE
    written = _read(file)
    values: dict[str, Any] = override(written, _from(environment))
    values = override(values, assignments)
    settings = parse(Settings, values, where=str(file) if written else "settings")
    found = root or (file.parent / settings.workspace if settings.workspace else None)
    return settings.model_copy(update={"workspace": found})


def _workspace_folder(asked: Path) -> Path:
    """Return the workspace that a person means: the folder itself, or the `.catena` in it."""
    inner = asked / ".catena"
    return inner if not (asked / "workspace.json").exists() and inner.is_dir() else asked


def _nearest(start: Path) -> Path | None:
    folders = (folder / ".catena" for folder in (start, *start.parents))
    return next((folder for folder in folders if (folder / "workspace.json").exists()), None)


def _read(file: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not valid YAML: {error}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{file}: settings are a mapping, for example `serve: {{port: 9000}}`")
    return values


def _from(environment: Mapping[str, str]) -> list[str]:
    """Return the assignments that the environment makes."""
    names = {PREFIX + row.name.upper().replace(".", "_"): row.name for row in describe(Settings)}
    return [f"{path}={environment[name]}" for name, path in names.items() if environment.get(name)]
