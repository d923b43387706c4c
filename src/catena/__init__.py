"""Catena: raw material to dataset, dataset to model, model to service, service to feedback, with one lineage.

The public names are resolved on first use, so that `import catena` costs milliseconds and never imports torch.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

# Ray, and others that ask, report their use to their makers unless told not to; that is for the user to decide.
os.environ.setdefault("DO_NOT_TRACK", "true")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# Threads that spin while they wait take the processor from those that work, where processors are shared.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"

_PUBLIC = {
    "open": "catena.workspace:open",
    "Workspace": "catena.workspace:Workspace",
    "CatenaError": "catena.core.errors:CatenaError",
    "Config": "catena.core.config:Config",
    "Context": "catena.core.stage:Context",
    "stage": "catena.core.stage:stage",
    "Sample": "catena.core.sample:Sample",
    "DatasetVersion": "catena.core.types:DatasetVersion",
    "ModelVersion": "catena.core.types:ModelVersion",
    "Report": "catena.core.types:Report",
    "Run": "catena.core.types:Run",
    "Score": "catena.core.types:Score",
    "advise": "catena.flow.advisor.advise:advise",
    "load_recipe": "catena.flow.recipe:load_recipe",
}

__all__ = ["__version__", *_PUBLIC]

if TYPE_CHECKING:
    from catena.core.config import Config as Config
    from catena.core.errors import CatenaError as CatenaError
    from catena.core.sample import Sample as Sample
    from catena.core.stage import Context as Context, stage as stage
    from catena.core.types import (
        DatasetVersion as DatasetVersion,
        ModelVersion as ModelVersion,
        Report as Report,
        Run as Run,
        Score as Score,
    )
    from catena.flow.advisor.advise import advise as advise
    from catena.flow.recipe import load_recipe as load_recipe
    from catena.workspace import Workspace as Workspace, open as open


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'catena' has no attribute {name!r}")
    module, _, attribute = _PUBLIC[name].partition(":")
    value = getattr(importlib.import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
