"""Scores of lm-evaluation-harness over our server, beside those of its own `hf` model, on the same local tasks.

    python benchmarks/lm_eval_parity.py [--venv FOLDER] [--rows 60]

The harness (lm-eval, in an environment of its own that is made on the first run) reads one model folder twice: by
itself with `transformers`, and over `/v1/completions` as `local-completions`. Three tasks of each kind that it knows:

    choice       multiple choice by log-likelihood (prompts scored with `echo` and `logprobs`)
    perplexity   rolling log-likelihood of texts longer than the context
    write        greedy answers up to a stop string

Told are the scores of both, which must be equal, and the largest difference of any log-likelihood.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "lm_eval_parity.json"
CONSTRAINTS = Path(__file__).parent.parent / "constraints.txt"
PACKAGES = ("lm-eval[api]==0.4.13", "torch==2.13.0", "transformers==5.23.0", "accelerate==1.15.0")
WORDS = [
    *("the", "quick", "brown", "fox", "jumps", "over", "lazy", "dogs", "while", "你好", "世界", "tells", "what"),
    *("a", "function", "does", "to", "its", "list", "of", "names"),
]
WINDOW = 200
"""Tokens that are read at once."""
ALLOWED = 1e-3
"""Largest difference of a log-likelihood: that of a sum of float32 in another order."""
TASKS: dict[str, dict[str, Any]] = {
    "choice": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{answer}}",
        "doc_to_choice": "{{choices}}",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    "perplexity": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
    },
    "write": {
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{written}}",
        "generation_kwargs": {"until": ["."], "max_gen_toks": 12, "do_sample": False, "temperature": 0.0},
        "metric_list": [{"metric": "exact_match"}],
    },
}


def make_model(folder: Path) -> Any:
    """Write a small model, random but the same every time, and its tokenizer; return both."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from catena.models.checkpoint import save
    from catena.models.tokenizer import train_tokenizer

    tokenizer = train_tokenizer([" ".join(WORDS) + ". "] * 40, 600)
    torch.manual_seed(1)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=256,
            initializer_range=0.08,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    save(model.eval(), tokenizer, folder)
    return model, tokenizer


def write_tasks(folder: Path, rows: int) -> None:
    """Write the tasks with their data."""
    draw = random.Random(1)

    def words(count: int) -> str:
        return " ".join(draw.choice(WORDS) for _ in range(count))

    data = [
        {
            "question": words(draw.randint(4, 30)),
            "choices": [words(draw.randint(1, 5)) for _ in range(4)],
            "answer": draw.randrange(4),
            "text": words(draw.randint(200, 500)),
            "written": words(3),
        }
        for _ in range(rows)
    ]
    (folder / "data.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in data))
    for name, task in TASKS.items():
        whole = {
            "task": f"local_{name}",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(folder / "data.jsonl")}},
            "test_split": "test",
            **task,
        }
        (folder / f"{name}.yaml").write_text(json.dumps(whole))  # JSON is YAML


def evaluate(python: Path, folder: Path, name: str, model: str, arguments: str) -> tuple[dict[str, Any], list[Any]]:
    """Run the harness; return the scores, and what every request of every sample was answered with."""
    out = folder / name
    command = [str(python), "-m", "lm_eval", "run", "--model", model, "--model_args", arguments]
    command += ["--tasks", *(f"local_{task}" for task in TASKS), "--include_path", str(folder)]
    command += ["--batch_size", "8", "--device", "cpu", "--output_path", str(out), "--log_samples"]
    environment = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(folder),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "NO_PROXY": "127.0.0.1",
        "OPENAI_API_KEY": "none",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"the harness failed with {model}:\n{done.stderr[-3000:]}")
    [scores] = out.rglob("results_*.json")
    answers = []
    for task in TASKS:
        [samples] = out.rglob(f"samples_local_{task}_*.jsonl")
        rows = [json.loads(line) for line in samples.read_text().splitlines()]
        answers += [(task, row["doc_id"], row["resps"]) for row in sorted(rows, key=lambda row: row["doc_id"])]
    told = json.loads(scores.read_text())["results"]
    return {
        f"{task}/{metric.partition(',')[0]}": value
        for task in TASKS
        for metric, value in told[f"local_{task}"].items()
        if isinstance(value, float) and "stderr" not in metric
    }, answers


def numbers(value: Any) -> list[float]:
    """Return every number in an answer."""
    if isinstance(value, list):
        return [number for one in value for number in numbers(one)]
    try:
        return [] if isinstance(value, bool) else [float(value)]
    except (TypeError, ValueError):
        return []


def texts(value: Any) -> list[str]:
    """Return everything in an answer that is no number: texts, and whether a token was the likeliest."""
    if isinstance(value, list):
        return [text for one in value for text in texts(one)]
    return [] if numbers(value) else [str(value)]


def main() -> int:
    """Run both, print the table, write the results."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--venv", type=Path, default=Path(tempfile.gettempdir()) / "catena-lm-eval")
    options.add_argument("--rows", type=int, default=60)
    given = options.parse_args()
    python = given.venv / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(given.venv)], check=True)
        install = [str(python), "-m", "pip", "install", "-q", "-c", str(CONSTRAINTS), *PACKAGES]
        subprocess.run(install, check=True)

    from catena.core.generate import GENERATORS
    from catena.serve.app import build_app
    from catena.serve.server import background

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = folder / "model"
        make_model(model)
        write_tasks(folder, given.rows)
        theirs, wanted = evaluate(python, folder, "hf", "hf", f"pretrained={model},max_length={WINDOW}")
        engine = GENERATORS.load("auto")(model)
        try:
            with background(build_app({"m": engine})) as url:
                # The harness keeps a place for the token that it has to ask for, and one for the first.
                arguments = f"model=m,base_url={url}/v1/completions,tokenizer={model},max_length={WINDOW + 2}"
                ours, found = evaluate(python, folder, "catena", "local-completions", f"{arguments},num_concurrent=2")
        finally:
            engine.close()
    pairs = [(numbers(a[2]), numbers(b[2])) for a, b in zip(wanted, found, strict=True)]
    difference = max(abs(x - y) for a, b in pairs for x, y in zip(a, b, strict=True))
    same = sum(texts(a[2]) == texts(b[2]) for a, b in zip(wanted, found, strict=True))
    print(f"{'score':28} {'hf':>12} {'over HTTP':>12}")
    for score, value in theirs.items():
        print(f"{score:28} {value:12.6f} {ours[score]:12.6f}")
    print(f"largest difference of a log-likelihood: {difference:.2e}")
    print(f"samples with equal texts and equal greedy flags: {same} of {len(found)}")
    equal = all(math.isclose(value, ours[score], rel_tol=1e-5) for score, value in theirs.items())
    RESULTS.write_text(
        json.dumps(
            {
                "harness": PACKAGES[0],
                "machine": platform.machine(),
                "rows": given.rows,
                "hf": theirs,
                "catena": ours,
                "largest_difference": difference,
                "equal_samples": same,
                "samples": len(found),
            },
            indent=2,
        )
        + "\n"
    )
    return 0 if equal and difference < ALLOWED and same == len(found) else 1


if __name__ == "__main__":
    sys.exit(main())
