"""Compression by name: `awq:4` becomes the step that does it, and a list of such names a recipe that compares them.

model -> one step for each version -> perplexity and answers of each -> compress.report of each -> one page
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from catena.core.config import override
from catena.core.errors import UsageError, did_you_mean
from catena.core.source import Source
from catena.core.stage import stage_of
from catena.core.types import DatasetVersion, ModelVersion
from catena.flow.recipe import Recipe, check_recipe
from catena.flow.table import STAGES
from catena.hub.store import Store

ROUNDED: Mapping[str, Mapping[str, Mapping[str, str]]] = {
    "rtn": {"8": {"scheme": "int8"}, "4": {"scheme": "int4"}},
    "awq": {"4": {"scheme": "int4", "method": "awq"}},
    "gptq": {"4": {"scheme": "int4", "method": "gptq"}, "8": {"scheme": "int8", "method": "gptq"}},
    "smoothquant": {"8": {"scheme": "w8a8", "method": "smoothquant"}},
    "int8": {"8": {"scheme": "int8"}},
    "int4": {"4": {"scheme": "int4"}},
    "w8a8": {"8": {"scheme": "w8a8"}},
    "fp8": {"8": {"scheme": "fp8"}},
    "fp8-dynamic": {"8": {"scheme": "fp8-dynamic"}},
    "nvfp4": {"4": {"scheme": "nvfp4"}},
    "fp4": {"4": {"scheme": "nvfp4"}},
}
"""Method to the bits that it is offered in; the first is what it does when nothing is said."""
PRUNED = ("magnitude", "wanda", "sparsegpt", "heads", "width", "layers")
FUSED = "fuse"
METHODS = (*ROUNDED, *PRUNED, FUSED)
TRAINED = ("train", "validation")
"""Splits that answers are not measured on."""


@dataclass(frozen=True)
class Version:
    """One way to make a model smaller."""

    name: str
    """`awq-4`: the name of its step."""
    stage: str
    config: Mapping[str, Any]


def versions_of(texts: Sequence[str], assignments: Sequence[str] = ()) -> list[Version]:
    """Read several versions; `assignments` (`a.b=c`) set further fields of the configs that have them.

    Raises `UsageError` for what `version_of` refuses, and for a field that none of them has.
    """
    versions = [version_of(text) for text in texts]
    configs = [stage_of(STAGES.load(version.stage)).config.model_fields for version in versions]
    for assignment in assignments:
        field = assignment.partition("=")[0].partition(".")[0]
        if not any(field in config for config in configs):
            known = [name for config in configs for name in config]
            raise UsageError(f"none of these methods has the value {field!r}", hint=did_you_mean(field, known))
    mine = [[one for one in assignments if one.partition("=")[0].partition(".")[0] in config] for config in configs]
    return [
        replace(version, config=override(dict(version.config), own))
        for version, own in zip(versions, mine, strict=True)
    ]


def version_of(text: str) -> Version:
    """Read METHOD or METHOD:AMOUNT, bits for what rounds and a share (or n:m) for what prunes.

    Raises `UsageError` for a method or an amount that is not offered.
    """
    method, _, amount = text.partition(":")
    config: dict[str, Any] = {}
    if method in ROUNDED:
        offered = ROUNDED[method]
        if amount and amount not in offered:
            raise UsageError(f"{method} is not offered in {amount!r} bits", hint=f"It has: {', '.join(offered)}.")
        stage, config = "compress.quantize", dict(offered[amount or next(iter(offered))])
    elif method in PRUNED:
        stage, config = "compress.prune", {"method": method, **_amount(method, amount)}
    elif method == FUSED:
        if amount not in ("", "norms", "layers"):
            raise UsageError(f"fuse takes norms or layers, not {amount!r}")
        stage, config = "compress.fuse", {"layers": amount == "layers"}
    else:
        raise UsageError(f"there is no method {method!r}", hint=did_you_mean(method, METHODS))
    return Version(text.replace(":", "-"), stage, config)


def _amount(method: str, amount: str) -> dict[str, Any]:
    if not amount:
        return {}
    if ":" in amount:
        return {"pattern": amount}
    try:
        return {"sparsity": float(amount)}
    except ValueError:
        raise UsageError(f"{method} takes a share such as 0.5, or 2:4; not {amount!r}") from None


def compression_recipe(
    store: Store,
    model: str,
    versions: Sequence[Version],
    *,
    data: str | None = None,
    test: str | None = None,
    task: str | None = None,
    name: str | None = None,
    seed: int = 0,
) -> Recipe:
    """Return the recipe that makes versions of a model and reports on each.

    `data` is calibrated with; perplexity is measured on the split `test` of `test` (or of `data`), answers on the
    splits of `task`. Without any of them only size and latency are reported. `name` is that of a single version.
    """
    subject = store.resolve(model, ModelVersion)
    if len({version.name for version in versions}) < len(versions):
        raise UsageError("a version is named twice", hint="Each makes one model.")
    measured = _measures(store, data, test, task)
    steps: dict[str, Any] = {}
    for key, (stage, ref, config) in measured.items():
        steps[f"{key}-before"] = {"stage": stage, "use": {"model": subject.digest, "data": ref}, "with": config}
    for version in versions:
        takes_data = "data" in stage_of(STAGES.load(version.stage)).inputs and data
        use = {"model": subject.digest, **({"data": data} if takes_data else {})}
        steps[version.name] = {"stage": version.stage, "use": use, "with": dict(version.config)}
        if name and len(versions) == 1:
            steps[version.name]["name"] = name
        about = {"model": version.name, "baseline": subject.digest}
        for key, (stage, ref, config) in measured.items():
            steps[f"{key}-{version.name}"] = {
                "stage": stage,
                "use": {"model": version.name, "data": ref},
                "with": config,
            }
            about |= {key: f"{key}-{version.name}", f"baseline_{key}": f"{key}-before"}
        steps[f"report-{version.name}"] = {"stage": "compress.report", "use": about}
    called = name or f"{model.partition('@')[0].replace('/', '-')}-compressed"
    values = {"name": called, "seed": seed, "steps": steps}
    return check_recipe(Source(f"catena compress {model}", "", values), store=store)


def _measures(store: Store, data: str | None, test: str | None, task: str | None) -> dict[str, tuple[str, str, Any]]:
    """Return what is measured: key of the report to stage, dataset and config."""
    found: dict[str, tuple[str, str, Any]] = {}
    text = store.resolve(test or data or "", DatasetVersion) if test or data else None
    if text is not None and text.shape == "document" and "test" in text.splits:
        found["perplexity"] = ("evaluate.perplexity", test or data or "", {})
    elif test:
        raise UsageError(f"{test} has no documents in a split `test`", hint="Make one with data.split.")
    if task:
        splits = [split for split in store.resolve(task, DatasetVersion).splits if split not in TRAINED]
        if not splits:
            raise UsageError(f"{task} has no split to measure answers on beside {' and '.join(TRAINED)}")
        found["answers"] = ("evaluate.answers", task, {"splits": splits})
    return found
