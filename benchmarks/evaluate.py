"""`catena evaluate` beside lm-evaluation-harness with its `hf` model: the same scores, and how much faster.

    python benchmarks/evaluate.py [--venv FOLDER] [--data FOLDER] [--rows 40] [--documents 4] [--batch-size 8,32]

One model folder (random weights, the same every time), three tasks, the same rows, prompts and limits on both sides:

    gsm8k       5 worked examples in front, greedy answers up to 96 tokens, the last number counts; chrF of the texts
    intents     5 examples in front, the likeliest of four intents of a query (CLINC150)
    wikitext    rolling log-likelihood of articles of WikiText-2: perplexity by word, bits per byte

The harness (an environment of its own, made on the first run) loads its model once, and each task is timed by itself
with each batch size; the best time counts. Ours is timed from the call to the stored report, loading the model
included, with an empty cache of answers. Where --data has no files, rows of the same form are made.

Scores must be equal; perplexities, which are sums of float32 in another order, to six digits.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "evaluate.json"
CONSTRAINTS = ROOT / "constraints.txt"
PACKAGES = ("lm-eval[api]==0.4.13", "torch==2.13.0", "transformers==5.23.0", "accelerate==1.15.0")
CONTEXT = 2048
ANSWER = 96
SHOTS = 5
NUMBER = r"[-+]?\d[\d,]*(?:\.\d+)?"
THEIRS: dict[str, dict[str, Any]] = {
    "gsm8k": {
        "output_type": "generate_until",
        "fewshot_split": "train",
        "num_fewshot": SHOTS,
        "fewshot_config": {"sampler": "first_n"},
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["Question:", "\n\n"], "max_gen_toks": ANSWER, "do_sample": False},
        "filter_list": [
            {
                "name": "number",
                "filter": [
                    {"function": "regex", "group_select": -1, "regex_pattern": NUMBER},
                    {"function": "take_first"},
                ],
            },
            {"name": "text", "filter": [{"function": "take_first"}]},
        ],
        "metric_list": [
            {"metric": "exact_match", "regexes_to_ignore": [",", r"(?s).*#### "]},
            {"metric": "chrf", "aggregation": "chrf", "higher_is_better": True},
        ],
    },
    "intents": {
        "output_type": "multiple_choice",
        "fewshot_split": "train",
        "num_fewshot": SHOTS,
        "fewshot_config": {"sampler": "first_n"},
        "doc_to_text": "Query: {{query}}\nIntent:",
        "doc_to_target": "{{correct}}",
        "doc_to_choice": "{{choices}}",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    "wikitext": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "word_perplexity"}, {"metric": "byte_perplexity"}, {"metric": "bits_per_byte"}],
    },
}
FEW = {"few_shot": {"count": SHOTS, "pick": "first", "between": "\n\n", "data": {"file": "{name}-train.jsonl"}}}
OURS: dict[str, dict[str, Any]] = {
    "gsm8k": {
        "kind": "generate",
        "prompt": "Question: {{ question }}\nAnswer:",
        "answer": "{{ answer }}",
        "max_tokens": ANSWER,
        "stop": ["Question:", "\n\n"],
        "extract": [{"regex": NUMBER, "take": "last"}],
        "score": ["numeric"],
        **FEW,
    },
    "gsm8k-text": {  # the same answers, found in the cache
        "kind": "generate",
        "prompt": "Question: {{ question }}\nAnswer:",
        "answer": "{{ answer }}",
        "max_tokens": ANSWER,
        "stop": ["Question:", "\n\n"],
        "score": ["chrf"],
        **FEW,
    },
    "intents": {
        "kind": "choice",
        "prompt": "Query: {{ query }}\nIntent:",
        "choices": "{{ choices }}",
        "correct": "{{ correct }}",
        "score": ["acc", "acc_norm"],
        **FEW,
    },
    "wikitext": {"kind": "perplexity", "text": "{{ text }}"},
}
TIMED = {"gsm8k": ("gsm8k", "gsm8k-text"), "intents": ("intents",), "wikitext": ("wikitext",)}
SAME = {
    "gsm8k/exact_match,number": "gsm8k/numeric",
    "gsm8k/chrf,text": "gsm8k-text/chrf",
    "intents/acc,none": "intents/acc",
    "intents/acc_norm,none": "intents/acc_norm",
    "wikitext/word_perplexity,none": "wikitext/word_perplexity",
    "wikitext/byte_perplexity,none": "wikitext/byte_perplexity",
    "wikitext/bits_per_byte,none": "wikitext/bits_per_byte",
}


def write_rows(folder: Path, data: Path, rows: int, documents: int) -> None:
    """Write the rows of all tasks, from the files in `data` where they are, else made."""
    draw = random.Random(1)
    questions = [_gsm8k(data / f"gsm8k-{split}.jsonl", draw, 400) for split in ("test", "train")]
    for split, some in zip(("test", "train"), questions, strict=True):
        _write(folder / f"gsm8k-{split}.jsonl", some[: rows if split == "test" else SHOTS])
    intents = _intents(data / "clinc150.json", draw, 2 * rows + SHOTS)
    _write(folder / "intents-train.jsonl", intents[:SHOTS])
    _write(folder / "intents-test.jsonl", intents[SHOTS:])
    _write(
        folder / "wikitext-test.jsonl", [{"text": text} for text in _articles(data / "wikitext2-test.txt", documents)]
    )


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def _gsm8k(path: Path, draw: random.Random, count: int) -> list[dict[str, Any]]:
    if path.exists():
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    from catena.evaluate.made import story

    made = [story(draw) for _ in range(count)]
    return [{"question": row["question"], "answer": row["worked"]} for row in made]


def _intents(path: Path, draw: random.Random, count: int) -> list[dict[str, Any]]:
    if path.exists():
        pairs = [(text, label.replace("_", " ")) for text, label in json.loads(path.read_text())["test"]]
    else:
        verbs, things = ("play", "buy", "find", "call", "open"), ("music", "tickets", "a taxi", "the door", "my bank")
        pairs = [(f"please {verb} {thing} now", f"{verb} {thing}") for verb in verbs for thing in things] * count
    labels = sorted({label for _, label in pairs})
    rows = []
    for text, label in draw.sample(pairs, count):
        choices = [label, *draw.sample([one for one in labels if one != label], 3)]
        draw.shuffle(choices)
        rows.append({"query": text, "choices": choices, "correct": choices.index(label)})
    return rows


def _articles(path: Path, count: int) -> list[str]:
    from catena.evaluate.rows import read_rows
    from catena.evaluate.task import DataConfig

    if not path.exists():
        from catena.evaluate.made import make_rows

        return [" ".join(row["words"] for row in make_rows("copying", 400, seed)) for seed in range(count)]
    config = DataConfig(file=path.name, divide=r"^\s*= [^=].*[^=] = *$")
    return [str(row.values["text"]).strip() for row in read_rows(config, [path.parent])[:count]]


def make_model(folder: Path, rows: Path, width: int, layers: int) -> int:
    """Write the model, random but the same every time, with a tokenizer of the rows' texts; return its parameters."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from catena.models.checkpoint import save
    from catena.models.tokenizer import train_tokenizer

    texts = [line for path in sorted(rows.glob("*.jsonl")) for line in path.read_text(encoding="utf-8").splitlines()]
    texts = [str(value) for line in texts for value in json.loads(line).values() if isinstance(value, str)]
    tokenizer = train_tokenizer(texts, 8000)
    torch.manual_seed(1)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=layers,
            num_attention_heads=width // 64,
            num_key_value_heads=max(width // 256, 1),
            max_position_embeddings=CONTEXT,
            initializer_range=0.05,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    save(model.eval(), tokenizer, folder)
    return sum(one.numel() for one in model.parameters())


def write_tasks(folder: Path) -> None:
    """Write the tasks of both sides beside their rows."""
    for name, task in THEIRS.items():
        files = {"test": str(folder / f"{name}-test.jsonl")}
        if "fewshot_split" in task:
            files["train"] = str(folder / f"{name}-train.jsonl")
        whole = {"task": name, "dataset_path": "json", "dataset_kwargs": {"data_files": files}, "test_split": "test"}
        (folder / f"theirs-{name}.yaml").write_text(json.dumps({**whole, **task}))  # JSON is YAML
    for name, task in OURS.items():
        rows = name.removesuffix("-text")
        whole = {"name": name, "data": {"file": f"{rows}-test.jsonl"}, **task}
        (folder / f"ours-{name}.yaml").write_text(json.dumps(whole).replace("{name}", rows))


def theirs(folder: Path, model: Path, size: int) -> None:
    """Run the harness in this process (its own environment): times, scores and answers as JSON on standard output."""
    from lm_eval import simple_evaluate  # type: ignore[import-not-found]
    from lm_eval.models.huggingface import HFLM  # type: ignore[import-not-found]
    from lm_eval.tasks import TaskManager  # type: ignore[import-not-found]

    # A window of ours has CONTEXT tokens, the first given; one of theirs foretells as many as it is shown.
    lm = HFLM(pretrained=str(model), device="cpu", batch_size=size, dtype="float32", max_length=CONTEXT - 1)
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    told: dict[str, Any] = {"seconds": {}, "cpu": {}, "scores": {}, "texts": []}
    for name in THEIRS:
        begun, used = time.perf_counter(), time.process_time()
        found = simple_evaluate(lm, tasks=[name], task_manager=manager, bootstrap_iters=0, verbosity="ERROR")
        told["seconds"][name] = time.perf_counter() - begun
        told["cpu"][name] = time.process_time() - used
        scores = found["results"][name].items()
        told["scores"] |= {f"{name}/{key}": value for key, value in scores if isinstance(value, float)}
        if name == "gsm8k":
            rows = sorted(found["samples"][name], key=lambda row: row["doc_id"])
            told["texts"] = [row["resps"][0][0] for row in rows if row["filter"] == "text"]
    print("TOLD " + json.dumps(told))


def run_theirs(python: Path, folder: Path, model: Path, size: int) -> dict[str, Any]:
    """Run the harness in its environment."""
    environment = {
        **{name: os.environ[name] for name in ("PATH", "OMP_NUM_THREADS", "OMP_WAIT_POLICY") if name in os.environ},
        "HOME": str(folder),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "true",
    }
    command = [str(python), __file__, "--theirs", str(folder), "--model", str(model), "--batch-size", str(size)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"the harness failed:\n{done.stderr[-3000:]}")
    told: dict[str, Any] = json.loads(done.stdout.rpartition("TOLD ")[2])
    return told


def run_ours(folder: Path, model: Path) -> dict[str, Any]:
    """Evaluate with Catena in a new workspace: times, scores and answers."""
    import catena as c
    from catena.models import checkpoint

    told: dict[str, Any] = {"seconds": {}, "cpu": {}, "scores": {}, "texts": []}
    with c.open(folder / "workspace") as ws:
        stored = ws.store.put_model(model, **checkpoint.describe(model))
        ws.store.index.add_artifact(stored)
        ws.store.index.add_name("model", stored.digest)
        for name, tasks in TIMED.items():
            begun, used = time.perf_counter(), time.process_time()
            files = [str(folder / f"ours-{task}.yaml") for task in tasks]
            found = ws.evaluate("model", files)
            told["seconds"][name] = time.perf_counter() - begun
            told["cpu"][name] = time.process_time() - used
            told["scores"] |= {key: score.value for key, score in found.scores.items()}
            if name == "gsm8k":
                lines = (ws.store.checkout(found.report) / "samples.jsonl").read_text().splitlines()
                told["texts"] = [row["answer"] for line in lines if (row := json.loads(line))["split"] == "gsm8k"]
    return told


def harness_python(venv: Path) -> Path:
    """Return the Python of the harness's environment, which is made where it is not there."""
    python = venv / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", "-c", str(CONSTRAINTS), *PACKAGES], check=True)
    return python


def report(given: argparse.Namespace, parameters: int, runs: dict[int, dict[str, Any]], ours: dict[str, Any]) -> int:
    """Print the table, write the results; 0 where all scores are equal as the harness prints them."""
    first = next(iter(runs.values()))
    best = {name: min(run["seconds"][name] for run in runs.values()) for name in THEIRS}
    print(f"{'score':32} {'harness':>18} {'catena':>18}")
    equal = True
    for key, name in SAME.items():
        one, other = first["scores"][key], ours["scores"][name]
        equal &= math.isclose(one, other, rel_tol=1e-6)
        print(f"{name:32} {one:18.6f} {other:18.6f}")
    for name in THEIRS:
        print(
            f"{name:32} {best[name]:16.1f} s {ours['seconds'][name]:16.1f} s  {best[name] / ours['seconds'][name]:.2f}x"
        )
    for name in THEIRS:
        least = min(run["cpu"][name] for run in runs.values())
        mine = ours["cpu"][name]
        print(f"{name + ', of the processor':32} {least:16.1f} s {mine:16.1f} s  {least / mine:.2f}x")
    ratio = sum(best.values()) / sum(ours["seconds"].values())
    print(f"{'all three':32} {sum(best.values()):16.1f} s {sum(ours['seconds'].values()):16.1f} s  {ratio:.2f}x")
    same = sum(a == b for a, b in zip(first["texts"], ours["texts"], strict=True))
    print(f"equal texts: {same} of {len(ours['texts'])}")
    RESULTS.write_text(
        json.dumps(
            {
                "harness": PACKAGES[0],
                "machine": f"{platform.machine()}, {os.cpu_count()} cores",
                "model": {"parameters": parameters, "width": given.width, "layers": given.layers, "dtype": "float32"},
                "rows": {"gsm8k": given.rows, "intents": 2 * given.rows, "wikitext": given.documents},
                "scores": {
                    name: {"harness": first["scores"][key], "catena": ours["scores"][name]}
                    for key, name in SAME.items()
                },
                "equal_texts": same,
                "texts": len(ours["texts"]),
                "equal": equal,
                "seconds": {
                    "harness": {str(size): run["seconds"] for size, run in runs.items()},
                    "catena": ours["seconds"],
                },
                "processor_seconds": {
                    "harness": {str(size): run["cpu"] for size, run in runs.items()},
                    "catena": ours["cpu"],
                },
                "faster": {**{name: best[name] / ours["seconds"][name] for name in THEIRS}, "all": ratio},
            },
            indent=2,
        )
        + "\n"
    )
    return 0 if equal else 1


def main() -> int:
    """Run both, print the table, write the results."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--venv", type=Path, default=Path(tempfile.gettempdir()) / "catena-lm-eval")
    options.add_argument("--data", type=Path, default=Path("data"))
    options.add_argument("--rows", type=int, default=40)
    options.add_argument("--documents", type=int, default=4)
    options.add_argument("--batch-size", default="8,32", help="of the harness; the best time of each task counts")
    options.add_argument("--width", type=int, default=512)
    options.add_argument("--layers", type=int, default=8)
    options.add_argument("--theirs", type=Path, help=argparse.SUPPRESS)
    options.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.theirs is not None:
        theirs(given.theirs, given.model, int(given.batch_size))
        return 0
    python = harness_python(given.venv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_rows(folder, given.data, given.rows, given.documents)
        write_tasks(folder)
        parameters = make_model(folder / "model", folder, given.width, given.layers)
        ours = run_ours(folder, folder / "model")
        print(json.dumps([ours["seconds"], ours["cpu"]]), flush=True)
        runs = {}
        for size in map(int, given.batch_size.split(",")):
            runs[size] = run_theirs(python, folder, folder / "model", size)
            print(size, json.dumps([runs[size]["seconds"], runs[size]["cpu"]]), flush=True)
        return report(given, parameters, runs, ours)


if __name__ == "__main__":
    sys.exit(main())
