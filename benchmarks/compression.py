"""Every way to make a model smaller, on models trained here: size, perplexity, accuracy, latency, before and after.

    python benchmarks/compression.py [--workspace DIR] [--text FILE ...] [--larger DIR]

The first model is the demo's (recipes/python-helper.yaml, run here unless the workspace has it): its base on held-out
pages, its tuned one on questions. With --text a Llama of 14M parameters is trained on these files too (the published
ones were WikiText-2's validation and test parts), in the same workspace or in that of --larger. --only measures one of
them and keeps what is known of the other. Held to: INT8 keeps 99 % of the accuracy; int4 linears take at most 1/3.5 of
half precision; AWQ in 4 bits loses less than 2 % of perplexity, and less than rounding to nearest; GPTQ loses less than
rounding to nearest, and both are nearer to the model's own distributions; Wanda less than magnitude, SparseGPT at most
what Wanda does, at 2:4; a model with planted outliers is nearer to itself under SmoothQuant than under plain W8A8.
Exits 1 where one is not kept.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

import catena as c
from catena.core.errors import NotFound
from catena.core.types import ModelVersion

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "compression.json"
RECIPE = ROOT / "recipes" / "python-helper.yaml"
ROUNDED = ("int8", "rtn:4", "awq:4", "gptq:4", "w8a8", "smoothquant", "fp8", "nvfp4")
FOUR_BITS = ("rtn:4", "awq:4", "gptq:4")
ZEROS = [f"{method}:{amount}" for amount in ("0.5", "2:4") for method in ("magnitude", "wanda", "sparsegpt")]
PARTS = ("heads:0.5", "width:0.25", "layers:0.25", "fuse:layers")
OUTLIERS, SIZE = 6, 40.0
LARGER = {
    "name": "wiki",
    "seed": 5,
    "steps": {
        "text": {"stage": "data.ingest", "with": {"formats": ["txt"]}},
        "corpus": {
            "stage": "data.split_text",
            "use": {"source": "text"},
            "with": {"ratios": {"train": 0.9, "validation": 0.02, "test": 0.08}},
        },
        "tokenizer": {"stage": "train.tokenizer", "use": {"source": "corpus"}},
        "model": {
            "stage": "train.pretrain",
            "use": {"tokenizer": "tokenizer", "data": "corpus"},
            "with": {
                "preset": "llama-15m",
                "batch_size": 8,
                "sequence_length": 256,
                "schedule": "wsd",
                "learning_rate": 0.002,
                "eval_every": 100,
                "eval_batches": 4,
            },
        },
    },
}


def versions(ws: c.Workspace, model: str, names: list[str], **sources: Any) -> dict[str, Any]:
    """Make versions of a model and return what was measured on each."""
    found = ws.compress(model, names, **sources)
    reports = list(found.reports.values())
    return {
        "before": reports[0].details["before"],
        "versions": {name: report.details["after"] for name, report in found.reports.items()},
        "against_its_baseline": {
            name: {key: score.value for key, score in report.scores.items() if key.endswith("_ratio")}
            for name, report in found.reports.items()
        },
    }


def plant_outliers(ws: c.Workspace, ref: str, name: str) -> None:
    """Store the same model with a few channels of each norm much larger, and smaller where they are read."""
    import torch

    from catena.compress.blocks import walk
    from catena.compress.folds import find
    from catena.models import checkpoint

    model = ws.resolve(ref)
    assert isinstance(model, ModelVersion)
    loaded, tokenizer = checkpoint.load(ws.store.checkout(model))
    for block in walk(loaded, torch.arange(64)[None]):
        for fold in find(block):
            if fold.norm:
                scale = torch.ones(loaded.config.hidden_size)
                scale[:: loaded.config.hidden_size // OUTLIERS] = 1 / SIZE
                fold.apply_(block.module, scale)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint.save(loaded, tokenizer, Path(folder))
        made = ws.store.put_model(Path(folder), **checkpoint.describe(Path(folder)))
        run = c.Run(id=name, group=name, step=name, stage="benchmark", recipe="benchmark", key=name, status="done")
        ws.store.index.finish(run, made, name, ())


def linear_bytes(ws: c.Workspace, ref: str) -> dict[str, Any]:
    """Return the bytes of a model's linear layers in 4 bits and in half precision."""
    from catena.models import checkpoint, quant
    from catena.models.quant import PackedLinear

    model = checkpoint.load_model(ws.model(ref).folder)
    half = sum(2 * layer.weight.numel() for layer in quant.linears(model).values())
    sizes = [layer.in_features for layer in quant.linears(model).values()]
    group = next(one for one in (128, 64, 32) if all(size % one == 0 for size in sizes))
    quant.quantize_(model, scheme="int4", group_size=group)
    packed = [layer for layer in model.modules() if isinstance(layer, PackedLinear)]
    small = sum(getattr(layer, part).nbytes for layer in packed for part in layer.kept)
    return {"group_size": group, "int4_bytes": small, "half_bytes": half, "ratio": round(half / small, 3)}


def measure(ws: c.Workspace, model: str, corpus: str, whole: bool = True) -> dict[str, Any]:
    """Return what versions of one model come to on held-out documents; `whole`: parts, layers and outliers as well."""
    size = linear_bytes(ws, model)
    names = [*ROUNDED, *ZEROS, *(PARTS if whole else ())]
    result = versions(ws, model, names, data=corpus, overrides=[f"group_size={size['group_size']}"])
    result |= {"parameters": ws.model(model).version.parameters, "linears": size}
    result["divergence"] = divergences(ws, model, corpus, size["group_size"])
    if whole:
        planted = f"{model.replace('/', '-').replace('@', '-')}-planted"
        plant_outliers(ws, model, planted)
        result["planted"] = versions(ws, planted, ["w8a8", "smoothquant"], data=corpus)
        result["errors_at_2_4"] = layer_errors(ws, model, corpus)
    return result


def layer_errors(ws: c.Workspace, ref: str, corpus: str) -> dict[str, Any]:
    """Return in how many layers Wanda errs less than magnitude, and SparseGPT less than Wanda, each layer by itself."""
    from catena.compress import awq, zeros
    from catena.compress.blocks import walk
    from catena.compress.calibrate import CalibrationConfig, calibration_text
    from catena.core.events import Events
    from catena.core.stage import Context
    from catena.models import checkpoint

    model, data = ws.model(ref).version, ws.dataset(corpus).version
    loaded, tokenizer = checkpoint.load(ws.store.checkout(model))
    ctx = Context(ws.store, ws.store.root, 0, Events(None))
    text = calibration_text(ctx, CalibrationConfig(tokens=16_384, length=256), data, tokenizer, model.context)
    counts = {"layers": 0, "wanda_below_magnitude": 0, "sparsegpt_below_wanda": 0}
    for block in walk(loaded, text):
        measured = block.measure()
        for name, layer in block.linears().items():
            weight, inputs = layer.weight.detach(), measured[name]
            made = (
                zeros.by_magnitude(weight, 0.5, (2, 4)),
                weight * zeros.kept(zeros.wanda_score(weight, inputs), 0.5, (2, 4)),
                zeros.by_sparsegpt(weight, inputs.gram, 0.5, (2, 4)),
            )
            magnitude, wanda, sparsegpt = (awq.output_error(one - weight, inputs.gram) for one in made)
            counts["layers"] += 1
            counts["wanda_below_magnitude"] += wanda < magnitude
            counts["sparsegpt_below_wanda"] += sparsegpt < wanda
    return counts


def divergences(ws: c.Workspace, ref: str, corpus: str, group_size: int) -> dict[str, float]:
    """Return how far versions in 4 bits are from the model: KL divergence of the next token, nats, on held-out text.

    Perplexity of a model this small moves by chance as far as 4 bits move it; this does not.
    """
    import torch

    from catena.compress.calibrate import CalibrationConfig, calibration_text
    from catena.core.events import Events
    from catena.core.stage import Context
    from catena.models import checkpoint

    def told(version: ModelVersion) -> list[torch.Tensor]:
        loaded = checkpoint.load_model(ws.store.checkout(version)).eval()
        with torch.no_grad():
            return [loaded(input_ids=rows).logits.float().log_softmax(-1) for rows in text.split(16)]

    model, data = ws.model(ref).version, ws.dataset(corpus).version
    ctx = Context(ws.store, ws.store.root, 0, Events(None))
    tokenizer = checkpoint.load(ws.store.checkout(model))[1]
    text = calibration_text(ctx, CalibrationConfig(split="test", tokens=24_576), data, tokenizer, model.context)
    whole, found = told(model), {}
    for name in FOUR_BITS:
        made = ws.compress(ref, [name], data=corpus, overrides=[f"group_size={group_size}"])
        version = next(one for one in made.run.outputs.values() if isinstance(one, ModelVersion))
        parts = [(one.exp() * (one - two)).sum(-1).flatten() for one, two in zip(whole, told(version), strict=True)]
        found[name.replace(":", "-")] = round(float(torch.cat(parts).mean()), 6)
    return found


def losses(result: dict[str, Any]) -> dict[str, float]:
    """Return by how much each version's perplexity is over the model's, as a share."""
    whole = result["before"]["perplexity"]
    return {name: found["perplexity"] / whole - 1 for name, found in result["versions"].items()}


def claims(result: dict[str, Any]) -> dict[str, bool]:
    """Return what is promised of perplexity and size, and whether it is kept."""
    lost = losses(result)
    held = {
        "AWQ in 4 bits loses less than 2 %": lost["awq-4"] < 0.02,
        "AWQ loses less than rounding to nearest": lost["awq-4"] < lost["rtn-4"],
        "GPTQ loses less than rounding to nearest": lost["gptq-4"] < lost["rtn-4"],
        "Wanda loses less than magnitude at 50 %": lost["wanda-0.5"] < lost["magnitude-0.5"],
        "Wanda loses less than magnitude at 2:4": lost["wanda-2-4"] < lost["magnitude-2-4"],
        "SparseGPT loses at most what Wanda does at 2:4": lost["sparsegpt-2-4"] <= lost["wanda-2-4"],
        "int4 linears take at most 1/3.5 of half precision": result["linears"]["ratio"] >= 3.5,
    }
    if "divergence" in result:
        apart = result["divergence"]
        held["AWQ is nearer to the model than rounding to nearest"] = apart["awq-4"] < apart["rtn-4"]
        held["GPTQ is nearer to the model than rounding to nearest"] = apart["gptq-4"] < apart["rtn-4"]
    if "errors_at_2_4" in result:
        errors = result["errors_at_2_4"]
        held |= {
            "Wanda errs less than magnitude at 2:4 in every layer": errors["wanda_below_magnitude"] == errors["layers"],
            "SparseGPT errs less than Wanda at 2:4 in every layer": errors["sparsegpt_below_wanda"] == errors["layers"],
        }
    if "planted" in result:
        apart = {name: abs(value) for name, value in losses(result["planted"]).items()}
        nearer = apart["smoothquant"] < apart["w8a8"]
        held["SmoothQuant is nearer than plain W8A8 where outliers are planted"] = nearer
    return held


def of_answers(result: dict[str, Any]) -> dict[str, bool]:
    """Return what is promised of the accuracy of a model's answers, and whether it is kept."""
    whole, made = result["before"], result["versions"]
    held = {}
    for name in (name for name in whole if name.startswith("accuracy/")):
        held[f"INT8 keeps 99 % of {name}"] = made["int8"][name] >= 0.99 * whole[name]
        for amount in ("0.5", "2-4"):
            better = made[f"wanda-{amount}"][name] > made[f"magnitude-{amount}"][name]
            held[f"Wanda loses less than magnitude at {amount} of {name}"] = better
        better = made["sparsegpt-2-4"][name] >= made["wanda-2-4"][name]
        held[f"SparseGPT loses at most what Wanda does at 2-4 of {name}"] = better
    return held


def of_the_demo(ws: c.Workspace) -> dict[str, Any]:
    """Return what was measured on the demo's models."""
    if not stored(ws, "python-helper/tuned"):
        ws.run(RECIPE, until="tuned")
    data = {"data": "python-helper/conversations", "task": "python-helper/conversations"}
    names = ["int8", "w8a8", "rtn:4", "awq:4", "gptq:4", *ZEROS]
    return {
        "demo": measure(ws, "python-helper/base", "python-helper/corpus"),
        "answers": versions(ws, "python-helper/tuned", names, overrides=["group_size=64"], **data),
    }


def of_the_larger(ws: c.Workspace, folder: Path, text: list[Path], tokens: int) -> dict[str, Any]:
    """Return what was measured on the larger model, which is trained on `text`; nothing where there is neither."""
    if text and not stored(ws, "wiki/model"):
        recipe = folder / "wiki.yaml"
        recipe.write_text(yaml.safe_dump(LARGER, sort_keys=False))
        paths = ", ".join(str(path.resolve()) for path in text)
        ws.run(recipe, overrides=[f"text.paths=[{paths}]", f"model.tokens={tokens}"])
    if not stored(ws, "wiki/model"):
        return {}
    return {"larger": {"tokens": tokens, **measure(ws, "wiki/model", "wiki/corpus", whole=False)}}


def main() -> int:
    """Train what is missing, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workspace", type=Path)
    parser.add_argument("--larger", type=Path, help="workspace of the larger model")
    parser.add_argument("--text", type=Path, nargs="*", default=[])
    parser.add_argument("--tokens", type=int, default=1_200_000, help="tokens that the larger model is trained on")
    parser.add_argument("--only", choices=("demo", "larger"))
    given = parser.parse_args()
    workspace = given.workspace or Path(tempfile.mkdtemp(prefix="catena-compression-"))
    result: dict[str, Any] = json.loads(RESULTS.read_text()) if given.only else {}
    result["machine"] = f"{os.cpu_count()} cores, {processor()}"
    result["load_average"] = [round(value, 1) for value in os.getloadavg()]
    if given.only != "larger":
        with c.open(workspace) as ws:
            result |= of_the_demo(ws)
    if given.only != "demo":
        with c.open(given.larger or workspace) as ws:
            result |= of_the_larger(ws, given.larger or workspace, given.text, given.tokens)
    result["claims"] = of_answers(result["answers"])
    for model in ("demo", "larger"):
        if model in result:
            result["claims"] |= {f"{name} ({model})": held for name, held in claims(result[model]).items()}
    RESULTS.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    for name, held in result["claims"].items():
        print(f"{'kept  ' if held else 'BROKEN'}  {name}")
    return 0 if all(result["claims"].values()) else 1


def stored(ws: c.Workspace, ref: str) -> bool:
    """Tell whether a workspace has something under a name."""
    try:
        ws.resolve(ref)
    except NotFound:
        return False
    return True


def processor() -> str:
    """Return what the processor calls itself."""
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "unknown"


if __name__ == "__main__":
    sys.exit(main())
