"""The engine beside `generate`, padded `generate`, transformers' continuous batching and llama.cpp, on one processor.

    python benchmarks/engine.py [--rounds 3] [--threads 1,2] [--cases catena-bf16,llama-bf16,...] [--llama FOLDER]

A random Qwen3 of half a billion weights (28 layers of 1024, ff 3072, 16/8 heads of 128, vocabulary 32,000). Measured:

    decode-1     tokens a second behind one prompt of 32 tokens
    decode-16    the same for 16 prompts at once
    prefill      tokens a second of one prompt of 512 tokens

Every case is a child process of its own; the rounds go through all cases in turn, and the best of all tries counts:
others on the machine only make a try slower. Read bandwidth is measured in the same process as the engine's decoding.
One thread is timed by seconds of the processor, which others on the machine change little; more threads by the clock on
the wall, which waiting for each other belongs to, and which wants a machine (or a real-time priority: `chrt -r 1`) to
itself. `--clock` chooses one for all.
llama.cpp is measured through its library, by llama_speed.cpp, on the same prompts. FOLDER (or LLAMA_CPP) is a build of
it for this machine (`NATIVE=ON BUILD=FOLDER scripts/llama-cpp`); without it its cases are left out.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "engine.json"
SHAPE = {"vocab_size": 32_000, "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28}
HEADS = {"num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128}
THREADS = int(os.environ.get("BENCH_THREADS", "1"))
CLOCK = os.environ.get("BENCH_CLOCK", "cpu")
SHORT, LONG, STREAMS, ANSWER, TRIES = 32, 512, 16, 17, 3
OURS = ("catena-bf16", "catena-int8", "catena-w8a8", "catena-int4", "catena-int4-a8")
THEIRS = ("generate", "padded", "continuous")
LLAMA = {"llama-bf16": "BF16", "llama-q8_0": "Q8_0", "llama-q4_0": "Q4_0"}
# llama.cpp rounds the inputs of a layer to 8 bits as well; of ours only w8a8 and int4-a8 do.
EQUAL_BITS = {
    "catena-bf16": "llama-bf16",
    "catena-int8": "llama-q8_0",
    "catena-w8a8": "llama-q8_0",
    "catena-int4": "llama-q4_0",
    "catena-int4-a8": "llama-q4_0",
}
GOALS = {"decode-1": 1.3, "decode-16": 2.0, "prefill": 4.0}


def main() -> None:
    """Run, print a table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cases", default=",".join((*OURS, *THEIRS, *LLAMA)))
    parser.add_argument("--llama", type=Path, default=Path(os.environ.get("LLAMA_CPP", "/nowhere")))
    parser.add_argument("--threads", default="1,2", help="numbers of threads, each measured")
    parser.add_argument("--clock", choices=["auto", "cpu", "wall"], default="auto")
    parser.add_argument("--add", action="store_true", help="add to the results that are there")
    parser.add_argument("--child", default="")
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(child(arguments.child)))
        return
    cases = [
        case
        for case in arguments.cases.split(",")
        if case not in LLAMA or any((arguments.llama / name).exists() for name in ("src/libllama.a", "llama_speed"))
    ]
    before = json.loads(RESULTS.read_text()) if arguments.add else {"threads": {}, "rounds": 0}
    results: dict[str, Any] = before["threads"]
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(arguments.rounds):
            for threads in arguments.threads.split(","):
                clock = arguments.clock if arguments.clock != "auto" else "cpu" if threads == "1" else "wall"
                result = results.setdefault(threads, {"clock": clock, "load_average": [], "best": {}})
                _round(cases, int(threads), result, arguments.llama, Path(folder))
    write(results, before["rounds"] + arguments.rounds)


def _round(cases: list[str], threads: int, result: dict[str, Any], llama_folder: Path, folder: Path) -> None:
    """Measure each case once with so many threads, and keep the best of all tries."""
    os.environ |= {"BENCH_THREADS": str(threads), "BENCH_CLOCK": result["clock"], "OMP_NUM_THREADS": str(threads)}
    os.environ |= {"OMP_WAIT_POLICY": "PASSIVE", "THP_MEM_ALLOC_ENABLE": "1"}
    globals().update(THREADS=threads, CLOCK=result["clock"])
    best: dict[str, dict[str, float]] = result["best"]
    for case in cases:
        result["load_average"].append(round(os.getloadavg()[0], 1))
        found = llama(case, llama_folder, folder) if case in LLAMA else _in_child(case)
        print(threads, case, {key: round(value, 3) for key, value in found.items()}, file=sys.stderr, flush=True)
        for key, value in found.items():
            best.setdefault(case, {})[key] = round(max(value, best.get(case, {}).get(key, 0.0)), 3)


def now() -> float:
    """Return the time that counts, in seconds."""
    return time.perf_counter() if CLOCK == "wall" else time.process_time() / THREADS


def read_bandwidth() -> float:
    """Return GB/s of reading memory, by the same clock; the best of a few."""
    import torch

    block, best = torch.ones(64 << 20), 0.0
    for _ in range(5):
        began = now()
        block.sum()
        best = max(best, block.nbytes / 1e9 / max(1e-9, now() - began))
    return best


def _in_child(case: str) -> dict[str, float]:
    command = [sys.executable, __file__, "--child", case]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{case}: {done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def child(case: str) -> dict[str, float]:
    """Measure one case in this process."""
    import torch

    torch.set_num_threads(THREADS)
    model = build()
    if case == "generate":
        run = _generate(model, together=False)
    elif case == "padded":
        run = _generate(model, together=True)
    elif case == "continuous":
        run = _continuous(model)
    else:
        run, weights, cache = _catena(model, *case.split("-")[1:])
    times: dict[tuple[int, ...], float] = {}
    bandwidth = 0.0

    def timed(*asked: int) -> float:
        times[asked] = min(run(*asked), times.get(asked, 1e9))
        return times[asked]

    found: dict[str, float] = {}
    for _ in range(TRIES if case in OURS else 1):  # theirs take seconds each, which nothing disturbs for long
        if case in OURS:
            bandwidth = max(bandwidth, read_bandwidth())
        for name, count in (("decode-1", 1), ("decode-16", STREAMS)):
            if case == "padded" and count == 1:
                continue
            # The least of each: a difference of two tries, one of which was disturbed, may be anything.
            whole, first = timed(count, SHORT, ANSWER), timed(count, SHORT, 1)
            found[name] = count * (ANSWER - 1) / max(1e-9, whole - first)
        if case != "padded":
            found["prefill"] = LONG / timed(1, LONG, 1)
    if case in OURS:
        bandwidth = max(bandwidth, read_bandwidth())
        found["share of bandwidth"] = found["decode-1"] * (weights + (SHORT + ANSWER / 2) * cache) / 1e9 / bandwidth
    return found


def build() -> Any:
    """Return the random model, in bfloat16."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    ends = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
    config = Qwen3Config(**SHAPE, **HEADS, **ends, max_position_embeddings=4096, tie_word_embeddings=False)
    torch.manual_seed(0)
    with torch.device("meta"):
        model = Qwen3ForCausalLM(config).to(torch.bfloat16)
    model.to_empty(device="cpu")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(1.0) if "norm" in name else parameter.normal_(0, 0.02)
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    return model.eval()


def _prompts(count: int, length: int) -> list[list[int]]:
    return [[2 + (7919 * (at + 31 * row)) % 31_000 for at in range(length)] for row in range(count)]


Run = Callable[[int, int, int], float]


def _catena(model: Any, bits: str, extra: str = "") -> tuple[Run, int, int]:
    from catena.core.generate import Request, SamplingParams
    from catena.infer.bench import weight_bytes
    from catena.infer.capacity import EngineConfig
    from catena.infer.engine import Engine
    from catena.models.quant import quantize_

    class Numbers:
        eos_token_id = None

        def decode(self, ids: list[int], **_: Any) -> str:
            return ""

    if bits != "bf16":
        quantize_(model, (), bits)
    weights = weight_bytes(model)
    options = EngineConfig(
        max_running=STREAMS,
        token_budget=LONG,
        prefix_cache=False,
        activations="int8" if extra == "a8" else "auto",
    )
    engine = Engine(model, Numbers(), options)

    def run(count: int, length: int, new: int) -> float:
        params = SamplingParams(max_tokens=new, ignore_end=True)
        requests = [Request(str(at), prompt, params) for at, prompt in enumerate(_prompts(count, length))]
        began = now()
        assert sum(len(done.token_ids) for done in engine.generate(requests)) == count * new
        return now() - began

    run(1, 8, 2)
    return run, weights, engine.runner.layout.bytes_per_token


def _generate(model: Any, *, together: bool) -> Run:
    import torch

    def run(count: int, length: int, new: int) -> float:
        rows = torch.tensor(_prompts(count, length))
        began = now()
        for batch in [rows] if together else rows.split(1):
            options = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False}
            model.generate(batch, attention_mask=torch.ones_like(batch), **options)
        return now() - began

    run(1, 8, 2)
    return run


def _continuous(model: Any) -> Run:
    from transformers import GenerationConfig

    def run(count: int, length: int, new: int) -> float:
        config = GenerationConfig(
            max_new_tokens=new, min_new_tokens=new, do_sample=False, eos_token_id=-1, pad_token_id=0
        )
        began = now()
        model.generate_batch(inputs=_prompts(count, length), generation_config=config, progress_bar=False)
        return now() - began

    run(1, 8, 2)
    return run


def llama(case: str, build_folder: Path, folder: Path) -> dict[str, float]:
    """Measure llama.cpp through its library; the file is written once."""
    path = folder / f"{LLAMA[case]}.gguf"
    if not path.exists():
        write_gguf(path, LLAMA[case])
    sizes = [THREADS, SHORT, LONG, STREAMS, ANSWER, TRIES]
    found: dict[str, float] = json.loads(_output([str(_tool(build_folder, folder)), str(path), *map(str, sizes)]))
    return found


def _tool(build_folder: Path, folder: Path) -> Path:
    """Return the program that measures, compiled against the static libraries of a build of llama.cpp."""
    if (build_folder / "llama_speed").exists():
        return build_folder / "llama_speed"
    program = folder / "llama_speed"
    if not program.exists():
        cache = (build_folder / "CMakeCache.txt").read_text()
        found = re.search(r"^CMAKE_HOME_DIRECTORY:INTERNAL=(.*)$", cache, re.MULTILINE)
        assert found is not None
        include = [f"-I{found[1]}/include", f"-I{found[1]}/ggml/include"]
        names = ("src/libllama.a", "ggml/src/libggml.a", "ggml/src/libggml-cpu.a", "ggml/src/libggml-base.a")
        libraries = [str(build_folder / name) for name in names]
        source = str(Path(__file__).with_name("llama_speed.cpp"))
        _output(["g++", "-O2", "-std=c++17", *include, source, "-o", str(program), *libraries, "-fopenmp", "-ldl"])
    return program


def _output(command: list[str]) -> str:
    # Its threads wait by OpenMP's barriers, awake by default; our policy would put them to sleep at each.
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(f"{command[0]}: {done.stderr[-2000:]}")
    return done.stdout


def write_gguf(path: Path, kind: str) -> None:
    """Write the same shape as GGUF with random weights, without a tokenizer: llama.cpp's benchmarks need none."""
    import gguf
    import numpy as np

    chance = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "qwen3")
    width, inner, layers = SHAPE["hidden_size"], SHAPE["intermediate_size"], SHAPE["num_hidden_layers"]
    heads, shared, dim = HEADS["num_attention_heads"], HEADS["num_key_value_heads"], HEADS["head_dim"]
    for add, value in (
        (writer.add_block_count, layers),
        (writer.add_context_length, 4096),
        (writer.add_embedding_length, width),
        (writer.add_feed_forward_length, inner),
        (writer.add_head_count, heads),
        (writer.add_head_count_kv, shared),
        (writer.add_key_length, dim),
        (writer.add_value_length, dim),
        (writer.add_rope_freq_base, 10_000.0),
        (writer.add_layer_norm_rms_eps, 1e-6),
        (writer.add_vocab_size, SHAPE["vocab_size"]),
        (writer.add_tokenizer_model, "none"),
    ):
        add(value)

    def put(name: str, *shape: int) -> None:
        if len(shape) == 1:
            writer.add_tensor(f"{name}.weight", np.ones(shape, np.float32))
            return
        values = chance.standard_normal(shape, np.float32) * 0.02
        type_ = gguf.GGMLQuantizationType[kind]
        writer.add_tensor(f"{name}.weight", gguf.quants.quantize(values, type_), raw_dtype=type_)

    put("token_embd", SHAPE["vocab_size"], width)
    put("output_norm", width)
    put("output", SHAPE["vocab_size"], width)
    for at in range(layers):
        put(f"blk.{at}.attn_norm", width)
        put(f"blk.{at}.attn_q", heads * dim, width)
        put(f"blk.{at}.attn_k", shared * dim, width)
        put(f"blk.{at}.attn_v", shared * dim, width)
        put(f"blk.{at}.attn_q_norm", dim)
        put(f"blk.{at}.attn_k_norm", dim)
        put(f"blk.{at}.attn_output", width, heads * dim)
        put(f"blk.{at}.ffn_norm", width)
        put(f"blk.{at}.ffn_gate", inner, width)
        put(f"blk.{at}.ffn_up", inner, width)
        put(f"blk.{at}.ffn_down", width, inner)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write(results: dict[str, Any], rounds: int) -> None:
    """Print a table for each number of threads and write the JSON, with the ratios to the others."""
    import torch
    import transformers

    names = ["decode-1", "decode-16", "prefill", "share of bandwidth"]
    for threads, result in results.items():
        best = result["best"]
        print(f"{threads + ' threads':14}" + "".join(f"{name:>20}" for name in names))
        for case, found in best.items():
            print(f"{case:14}" + "".join(f"{found.get(name, float('nan')):20.2f}" for name in names))
        pairs = {**EQUAL_BITS, **dict.fromkeys(THEIRS, "catena-bf16")}
        ratios: dict[str, Any] = {}
        for one, other in pairs.items():
            if one in best and other in best:
                top, low = (other, one) if one in THEIRS else (one, other)
                both = [name for name in GOALS if name in best[top] and name in best[low]]
                ratios[f"{top} / {low}"] = {name: round(best[top][name] / best[low][name], 2) for name in both}
                print(f"{top} / {low}: {ratios[f'{top} / {low}']}")
        result["ratios"] = ratios
    written = {
        "machine": {"processor": _processor(), "system": platform.platform(), "cores": os.cpu_count()},
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "model": {**SHAPE, **HEADS},
        "rounds": rounds,  # an added one may have been of some cases only
        "threads": results,
        "wanted of llama.cpp": GOALS | {"share of bandwidth": 0.85},
    }
    RESULTS.write_text(json.dumps(written, indent=2) + "\n")


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main()
