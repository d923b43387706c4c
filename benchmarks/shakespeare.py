"""nanoGPT's published processor setting by our recipe: a GPT-2 of 0.8M parameters and the characters of Shakespeare.

    python benchmarks/shakespeare.py input.txt [--workspace DIR]

`input.txt` is data/tinyshakespeare/input.txt of github.com/karpathy/char-rnn (1,115,394 bytes). nanoGPT's README tells
a validation loss of 1.88 after 2000 steps, estimated on random windows; here the whole last tenth of the text is
measured, twice: by the training, and by plain `transformers` from the stored folder. Exits 1 above 1.90.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "shakespeare.json"
MD5 = "6fb458f1232090904fb40fe944165e91"
PUBLISHED, PROMISED = 1.88, 1.90
CONTEXT = 64
EVALUATED = """
import json, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, path, share, context = sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4])
text = open(path, encoding="utf-8").read()
held = text[int(share * len(text)):]
ids = torch.tensor(AutoTokenizer.from_pretrained(folder)(held, add_special_tokens=False, verbose=False)["input_ids"])
model = AutoModelForCausalLM.from_pretrained(folder).eval()
rows = (len(ids) - 1) // context
inputs, labels = ids[: rows * context].view(rows, context), ids[1 : rows * context + 1].view(rows, context)
total = 0.0
with torch.no_grad():
    for at in range(0, rows, 64):
        logits = model(inputs[at : at + 64]).logits.flatten(0, 1)
        total += float(torch.nn.functional.cross_entropy(logits, labels[at : at + 64].flatten(), reduction="sum"))
print(json.dumps({"loss": total / (rows * context), "characters": rows * context}))
"""


def measure(text: Path, workspace: Path) -> dict[str, Any]:
    """Run the recipe and measure its model once more."""
    import subprocess

    import catena as c
    from catena.core.events import read_events

    started = time.monotonic()
    with c.open(workspace) as ws:
        run = ws.run(ROOT / "recipes" / "shakespeare.yaml", overrides=[f"text.paths=[{text}]"], refresh=True)
        made = run.runs["model"]
        told = read_events(ws.store.group_folder(run.group) / "events.jsonl")
        losses = [event["value"] for event in told if event.get("name") == "val_loss"]
        with ws.model("shakespeare/model") as model:
            command = [sys.executable, "-c", EVALUATED, str(model.folder), str(text), "0.9", str(CONTEXT)]
            again = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        parameters = ws.model("shakespeare/model").version.parameters
    return {
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
        "load_average": [round(value, 1) for value in os.getloadavg()],
        "text_is_the_published_one": hashlib.md5(text.read_bytes(), usedforsecurity=False).hexdigest() == MD5,
        "parameters": parameters,
        "steps": 2000,
        "validation_loss": losses[-1],
        "validation_loss_in_transformers": round(again["loss"], 5),
        "characters_measured": again["characters"],
        "published_validation_loss": PUBLISHED,
        "training_seconds": round(made.seconds or 0.0, 1),
        "seconds": round(time.monotonic() - started, 1),
    }


def main() -> int:
    """Measure, write the JSON, and say whether the promise is kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", type=Path)
    parser.add_argument("--workspace", type=Path, help="where to run (default: a new temporary folder)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        result = measure(arguments.text.resolve(), (arguments.workspace or Path(temporary)) / ".catena")
    print(json.dumps(result, indent=2))
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    return 0 if result["validation_loss"] <= PROMISED else 1


if __name__ == "__main__":
    sys.exit(main())
