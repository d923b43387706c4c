"""Datasets in Hugging Face's format: folders and a hub, every file kind, the card, and only new files later."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from catena.core.errors import DataError, NotFound, RemoteError
from catena.core.stage import Context
from catena.data.collect.card import read_card, split_by_name
from catena.data.collect.hf_rows import BadFile, BadRow, rows_of, sample_of, shape_of

from .loopback import FAST, Asked, Reply, collect, counts, loopback, reasons, texts

CARD = """---
license: cc-by-4.0
configs:
- config_name: extra
  data_files: more/*.csv
- config_name: default
  data_files:
  - split: train
    path: data/train-*.jsonl
  - split: held_out
    path: ["data/h.jsonl"]
---
# A corpus
"""


def lines(*rows: Any) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def parquet(rows: list[dict[str, Any]]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


def put(folder: Path, files: dict[str, bytes | str]) -> str:
    for name, body in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body.encode() if isinstance(body, str) else body)
    return str(folder)


def test_licence_splits_and_files_come_from_the_card(context: Context, tmp_path: Path) -> None:
    files = {
        "README.md": CARD,
        "data/train-0.jsonl": lines({"text": "one", "n": 1}, {"text": "two", "n": 2}),
        "data/h.jsonl": lines({"text": "three", "n": 3}),
        "data/other.jsonl": lines({"text": "not named"}),
        "more/x.csv": "text\nfour\n",
    }
    folder = put(tmp_path / "corpus", files)
    version = collect(context, "data.collect_hf", folder=folder)
    rows = list(context.store.open_dataset(version).samples())
    assert [(row.text, row.split) for row in rows] == [("three", "held_out"), ("one", "train"), ("two", "train")]
    assert (version.license, rows[0].license) == ("cc-by-4.0", "cc-by-4.0")
    assert (rows[1].metadata["n"], rows[1].metadata["row"]) == (1, 0)
    assert rows[1].source == f"file:{folder}/data/train-0.jsonl"
    other = collect(context, "data.collect_hf", folder=folder, config="extra")
    assert texts(context, other) == ["four"]


def test_every_kind_of_file_is_read(context: Context, tmp_path: Path) -> None:
    files = {
        "train-00000-of-00001.parquet": parquet([{"text": "parquet"}]),
        "validation.csv": 'text,n\n"csv, with\nbreak",1\n',
        "test.tsv": "text\tn\ntsv\t1\n",
        "train.jsonl.gz": gzip.compress(lines({"text": "gz"})),
        "train.ndjson.bz2": bz2.compress(lines({"text": "bz2"})),
        "train.json": json.dumps([{"text": "list 甲"}, {"text": "list 2"}]).encode(),
        "dev.json": lines({"text": "lines"}),
        "dataset_infos.json": b"{}",
        ".hidden/x.jsonl": lines({"text": "hidden"}),
    }
    version = collect(context, "data.collect_hf", folder=put(tmp_path / "corpus", files))
    assert sorted(texts(context, version)) == [
        "bz2",
        "csv, with\nbreak",
        "gz",
        "lines",
        "list 2",
        "list 甲",
        "parquet",
        "tsv",
    ]
    assert {name: split.rows for name, split in version.splits.items()} == {"train": 5, "validation": 2, "test": 1}


def test_only_new_and_changed_files_are_read(context: Context, tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    put(folder, {"a.jsonl": lines({"text": "a0"}, {"text": "a1"}), "b.jsonl": lines({"text": "b0"})})
    first = collect(context, "data.collect_hf", folder=str(folder))
    put(folder, {"a.jsonl": lines({"text": "a0, changed"}), "c.jsonl": lines({"text": "c0"})})
    (folder / "b.jsonl").unlink()
    second = collect(context, "data.collect_hf", folder=str(folder))
    assert counts(second) == {"changed": 1, "gone": 2, "new": 1}
    assert texts(context, second) == ["a0, changed", "c0"]
    third = collect(context, "data.collect_hf", folder=str(folder))
    assert (third.digest, texts(context, first)) == (second.digest, ["a0", "a1", "b0"])


def test_a_run_goes_on_inside_a_file(context: Context, tmp_path: Path) -> None:
    folder = put(tmp_path / "corpus", {"a.jsonl": lines(*({"text": f"row {n}"} for n in range(600)))})
    whole = collect(context, "data.collect_hf", folder=folder)
    parts = Context(context.store, context.workdir, 7, context.events, "parts")
    rows = [collect(parts, "data.collect_hf", folder=folder, max_records=200).rows for _ in range(3)]
    assert rows == [256, 512, 600]
    assert parts.store.resolve("parts").digest == whole.digest


def test_bad_rows_and_bad_files_are_rejects(context: Context, tmp_path: Path) -> None:
    files = {
        "a.jsonl": lines({"text": "good"})
        + b"{broken\n\n"
        + lines(["no", "row"], {"body": "x"}, {"n": 5}, {"text": " "}),
        "b.parquet": b"PAR1 and then nothing",
        "c.jsonl.gz": gzip.compress(lines(*({"text": f"{n}" * 50} for n in range(3000))))[:-2000],
        "d.csv": 'text,n\nfine,1\n"broken,2\n',
        "e.csv": "text,n\nshort\n",
        "f.jsonl": lines({"text": "x" * 5000}, {"text": "after"}),
        "g.jsonl": b"\xef\xbb\xbf" + lines({"text": "bom"}) + b'{"text": "lone \\ud800"}\n',
    }
    version = collect(context, "data.collect_hf", folder=put(tmp_path / "corpus", files), max_row_bytes=2000)
    found = reasons(context, version)
    by_file = {name: sorted(why for key, why in found.items() if key.startswith(name)) for name in files}
    assert by_file == {
        "a.jsonl": ["bad_row", "bad_row", "bad_row", "bad_row"],
        "b.parquet": ["bad_file"],
        "c.jsonl.gz": ["bad_file"],
        "d.csv": ["bad_file"],
        "e.csv": ["bad_row"],
        "f.jsonl": ["too_large"],
        "g.jsonl": ["lone_surrogate"],
    }
    kept = texts(context, version)
    assert kept[:2] == ["good", "x"]
    assert {"after", "bom", "fine"} <= set(kept)
    (tmp_path / "corpus" / "b.parquet").unlink()
    later = collect(context, "data.collect_hf", folder=str(tmp_path / "corpus"), max_row_bytes=2000)
    assert "b.parquet:" not in reasons(context, later)


def hub(files: dict[str, bytes], state: dict[str, Any]) -> Any:
    """A hub with one dataset, as huggingface.co answers."""

    def answer(asked: Asked) -> Reply:
        if state.get("token") and asked.headers.get("authorization") != f"Bearer {state['token']}":
            return Reply(status=401)
        if asked.path == "/api/datasets/me/corpus/revision/main":
            siblings = [
                {"rfilename": name, "size": len(body), "blobId": hashlib.sha1(body).hexdigest()}
                for name, body in files.items()
            ]
            return Reply({"sha": state["sha"], "siblings": [*siblings, {"rfilename": "../../escape.jsonl", "size": 1}]})
        name = asked.path.removeprefix(f"/datasets/me/corpus/resolve/{state['sha']}/")
        return Reply(files[name]) if name in files else Reply(status=404)

    return answer


def test_a_hub_sends_only_files_that_are_new(context: Context, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MY_HUB_TOKEN", "t0ken")
    files = {"README.md": b"---\nlicense: mit\n---\n", "train.jsonl": lines({"text": "one"})}
    state = {"sha": "a" * 40, "token": "t0ken"}
    auth = {"kind": "bearer", "secret_env": "MY_HUB_TOKEN"}
    with loopback(hub(files, state)) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        first = collect(context, "data.collect_hf", repo="me/corpus", auth=auth, http=FAST)
        assert (texts(context, first), first.license) == (["one"], "mit")
        files["test.jsonl"] = lines({"text": "two"})
        state["sha"] = "b" * 40
        server.asked.clear()
        second = collect(context, "data.collect_hf", repo="me/corpus", auth=auth, http=FAST)
        downloads = [path.rsplit("/", 1)[1] for path in server.paths() if "/resolve/" in path]
        assert downloads == ["README.md", "test.jsonl"]
        assert counts(second) == {"kept": 1, "new": 1}
        state["token"] = "another"
        with pytest.raises(NotFound, match="me/corpus"):
            collect(context, "data.collect_hf", repo="me/corpus", auth=auth, http=FAST)
    assert not list(context.workdir.glob("*.part"))
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and b"t0ken" in path.read_bytes()]


def test_a_hub_that_dies_in_the_middle_is_gone_on_with(context: Context) -> None:
    files = {f"train-{n}.jsonl": lines({"text": f"row {n}"}) for n in range(3)}
    state: dict[str, Any] = {"sha": "a" * 40}
    whole = hub(files, state)
    dead = [True]

    def answer(asked: Asked) -> Reply:
        return Reply(status=502) if dead and asked.path.endswith("train-2.jsonl") else whole(asked)

    with loopback(answer) as server:
        values = {"repo": "me/corpus", "endpoint": server.url, "shape": "document", "http": FAST}
        with pytest.raises(RemoteError):
            collect(context, "data.collect_hf", **values)
        dead.clear()
        version = collect(context, "data.collect_hf", **values)
        assert [path[-13:] for path in server.paths() if "train-0" in path] == ["train-0.jsonl"]
    assert version.rows == 3


def test_a_folder_without_data_says_so(context: Context, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no data file"):
        collect(context, "data.collect_hf", folder=put(tmp_path / "corpus", {"README.md": "# nothing"}))


@pytest.mark.parametrize(
    ("row", "shape", "data"),
    [
        ({"text": "t"}, "document", {"text": "t"}),
        ({"content": "t"}, "document", {"text": "t"}),
        ({"question": "q", "answer": "a"}, "example", {"input": "q", "output": "a"}),
        (
            {"messages": [{"role": "user", "content": "q"}]},
            "conversation",
            {"messages": [{"role": "user", "content": "q"}]},
        ),
        (
            {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
            "conversation",
            {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
        ),
        ({"image": {"bytes": b"x", "path": "a.png"}}, "media", {"content": b"x", "media_type": "image/png"}),
    ],
)
def test_the_shape_is_told_by_the_columns(row: dict[str, Any], shape: str, data: dict[str, Any]) -> None:
    assert shape_of(row, {}) == shape
    made = sample_of(row, shape, {})  # type: ignore[arg-type]
    assert not isinstance(made, BadRow)
    assert made[0] == data


def test_columns_of_other_names_are_named_in_the_config(context: Context, tmp_path: Path) -> None:
    folder = put(tmp_path / "corpus", {"a.csv": "frage,antwort,kennung\nq,a,7\n"})
    values = {"folder": folder, "columns": {"input": "frage", "output": "antwort"}, "id": "kennung"}
    version = collect(context, "data.collect_hf", **values)
    (row,) = context.store.open_dataset(version).samples()
    assert (row.data, row.metadata["key"]) == ({"input": "q", "output": "a"}, "7")


def test_a_card_that_is_broken_says_nothing() -> None:
    for text in ("", "# no front", "---\n: [\n---\n", "---\n- list\n---\n"):
        assert read_card(text) == read_card("")
    assert read_card("---\nlicense: other\nlicense_name: house\n---\n").license == "house"
    assert read_card("---\nlicense: [mit, apache-2.0]\n---\n").license == "mit AND apache-2.0"


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("data/train-00000-of-00001.parquet", "train"),
        ("dev.csv", "validation"),
        ("eval/part-1.jsonl", "test"),
        ("latest.json", "train"),
        ("test/train_0.jsonl", "train"),
    ],
)
def test_a_split_is_told_by_names(path: str, split: str) -> None:
    assert split_by_name(path) == split


def test_a_json_list_longer_than_any_piece_is_read_entry_by_entry() -> None:
    rows = [{"text": "x" * 300, "n": n} for n in range(2000)]
    body = io.BytesIO(json.dumps(rows, indent=1).encode())
    assert list(rows_of(body, "a.json", 10_000, 1990)) == rows[1990:]
    with pytest.raises(BadFile, match="ends early"):
        list(rows_of(io.BytesIO(body.getvalue()[:-100]), "a.json", 10_000, 0))
    with pytest.raises(BadFile, match="more than"):
        list(rows_of(io.BytesIO(b'[{"a": "' + b"x" * 500_000), "a.json", 10_000, 0))
