"""What a pushed folder is: a checkpoint that can be served, an adapter, a tokenizer, or files; and which are pickles.

Reads configs and the heads of safetensors files only, and runs nothing of what it finds.
"""

from __future__ import annotations

import io
import math
import struct
import zipfile
from collections import Counter
from collections.abc import Mapping
from typing import Any, BinaryIO

import orjson

from catena.core.errors import DataError
from catena.core.types import ModelForm
from catena.hub.files import FileStore
from catena.hub.repo.records import RepoFile

SMALL = 16 << 20
LONGEST_HEAD = 100 << 20
WEIGHTS, SHARDS = "model.safetensors", "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".dill", ".npy", ".npz")
DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64", "I8": "int8", "U8": "uint8"}
NOT_COUNTED = ("_scale", "_zero_point", "_shape", "_g_idx")


def is_pickle(path: str, stream: BinaryIO) -> bool:
    """Tell whether a file is a pickle, or an archive that holds one, by its bytes and not its name."""
    head = stream.read(2)
    if head[:1] == b"\x80" and len(head) == 2 and 2 <= head[1] <= 5:
        return True
    if not path.lower().endswith(PICKLES):
        return False
    stream.seek(0)
    try:
        with zipfile.ZipFile(stream) as archive:
            return any(name.endswith((".pkl", ".pickle")) for name in archive.namelist())
    except (zipfile.BadZipFile, OSError):
        return not path.lower().endswith((".npy", ".npz", ".bin"))  # those words are also used for plain numbers


def model_facts(files: FileStore, tree: Mapping[str, RepoFile]) -> dict[str, Any] | None:
    """Return `form` and the other fields of a `ModelVersion` for a folder that is one, whole; None for any other.

    Raises `DataError` for weights whose head cannot be read: they were truncated, or are none.
    """
    form = _form(files, tree)
    if form is None:
        return None
    config = _json(files, tree.get("config.json"))
    weights = [file for path, file in sorted(tree.items()) if path.endswith(".safetensors") and "/" not in path]
    counts: Counter[str] = Counter()
    for file in weights:
        _count(files, file, counts)
    dtype = counts.most_common(1)[0][0] if counts else ""
    quantization = config.get("quantization_config")
    scheme = str(quantization.get("quant_method") or "yes") if isinstance(quantization, dict) else None
    return {
        "form": "quantized" if form == "full" and scheme else form,
        "architecture": str((config.get("architectures") or [""])[0]),
        "parameters": counts.total(),
        "dtype": DTYPES.get(dtype, dtype.lower()),
        "context": _number(config.get("max_position_embeddings") or config.get("n_positions")),
        "quantization": scheme,
    }


def _form(files: FileStore, tree: Mapping[str, RepoFile]) -> ModelForm | None:
    if "adapter_config.json" in tree and "adapter_model.safetensors" in tree:
        return "adapter"
    if "config.json" in tree and WEIGHTS in tree:
        return "full"
    if "config.json" in tree and SHARDS in tree:
        shards = _json(files, tree[SHARDS]).get("weight_map")
        return "full" if isinstance(shards, dict) and shards and set(shards.values()) <= tree.keys() else None
    if any(path.endswith(".gguf") for path in tree):
        return "gguf"
    if any(path.endswith(".onnx") for path in tree):
        return "onnx"
    holds_weights = any(path.endswith((".safetensors", *PICKLES)) for path in tree)
    return "tokenizer" if "tokenizer.json" in tree and not holds_weights and "config.json" not in tree else None


def _count(files: FileStore, file: RepoFile, counts: Counter[str]) -> None:
    for name, facts in safetensors_head(files, file).items():
        if name == "__metadata__" or name.endswith(NOT_COUNTED):
            continue
        times = 8 if name.endswith(".weight_packed") and facts["dtype"] == "I32" else 1
        counts[facts["dtype"]] += math.prod(facts["shape"]) * times


def safetensors_head(files: FileStore, file: RepoFile) -> dict[str, Any]:
    """Return the head of a safetensors file; raises `DataError` where it, or the data it tells of, is not all there."""
    with files.open(file.sha256) as stream:
        size = struct.unpack("<Q", stream.read(8).ljust(8, b"\0"))[0]
        if not 2 <= size <= min(LONGEST_HEAD, file.size - 8):
            raise _damaged(file)
        try:
            head = orjson.loads(stream.read(size))
            ends = [entry["data_offsets"][1] for name, entry in head.items() if name != "__metadata__"]
            shapes = [entry["shape"] for name, entry in head.items() if name != "__metadata__"]
        except (orjson.JSONDecodeError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise _damaged(file) from error
    if max(ends, default=0) + 8 + size != file.size or not all(isinstance(shape, list) for shape in shapes):
        raise _damaged(file)
    found: dict[str, Any] = head
    return found


def _damaged(file: RepoFile) -> DataError:
    return DataError(f"{file.path} is no whole safetensors file", hint="Write it again; nothing was committed.")


def _json(files: FileStore, file: RepoFile | None) -> dict[str, Any]:
    if file is None or file.size > SMALL:
        return {}
    try:
        found = orjson.loads(read_small(files, file))
    except orjson.JSONDecodeError as error:
        raise DataError(f"{file.path} is not JSON: {error}", hint="Nothing was committed.") from error
    return found if isinstance(found, dict) else {}


def read_small(files: FileStore, file: RepoFile) -> bytes:
    """Return the bytes of a small file of a commit."""
    if file.text is not None:
        return file.text.encode()
    with files.open(file.sha256) as stream:
        return stream.read(SMALL)


def _number(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def pickle_in(data: bytes, path: str) -> bool:
    """Tell the same of bytes in memory."""
    return is_pickle(path, io.BytesIO(data))
