"""What users do, with unchanged clients: they know nothing of the hub but HF_ENDPOINT. Run in a process of its own."""

from __future__ import annotations

import sys
from pathlib import Path

import datasets
import numpy as np
import torch
from huggingface_hub import (
    HfApi,
    HfFileSystem,
    ModelCard,
    constants,
    create_repo,
    hf_hub_download,
    list_models,
    snapshot_download,
    upload_file,
    upload_folder,
)
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer


def main(folder: Path) -> None:
    """Read what the store has, then write, then read that."""
    tokenizer = AutoTokenizer.from_pretrained("team/tiny")
    model = AutoModelForCausalLM.from_pretrained("team/tiny")
    ids = tokenizer("what does the function do", return_tensors="pt")
    with torch.no_grad():
        before = model(**ids).logits
    assert AutoConfig.from_pretrained("team/tiny", revision="production").vocab_size == len(tokenizer)
    card = ModelCard.load("team/tiny")
    assert card.data.license == "apache-2.0"
    assert [found.id for found in list_models(search="tiny")] == ["team/tiny"]

    pages = datasets.load_dataset("team/pages")
    assert {split: len(rows) for split, rows in pages.items()} == {"train": 5, "validation": 1}
    assert pages["train"][2]["text"] == "page 2 你好"
    streamed = datasets.load_dataset("team/pages", split="train", streaming=True)
    assert [row["_id"] for row in streamed] == [f"page-{number}" for number in range(5)]

    model.push_to_hub("team/pushed")
    tokenizer.push_to_hub("team/pushed")
    again = AutoModelForCausalLM.from_pretrained("team/pushed")
    with torch.no_grad():
        assert torch.equal(again(**ids).logits, before)

    plain = create_repo("plain", repo_type="dataset").repo_id
    assert plain == "local/plain"
    (folder / "data").mkdir()
    (folder / "data" / "train.jsonl").write_text('{"x": 1}\n{"x": 2}\n')
    upload_folder(folder_path=folder / "data", repo_id=plain, repo_type="dataset")
    assert datasets.load_dataset(plain, split="train")["x"][:] == [1, 2]
    upload_file(path_or_fileobj=b"{}", path_in_repo="a b/\u4f60.json", repo_id=plain, repo_type="dataset")
    assert Path(hf_hub_download(plain, "a b/\u4f60.json", repo_type="dataset")).read_text() == "{}"

    files = HfFileSystem()
    assert f"datasets/{plain}/train.jsonl" in files.ls(f"datasets/{plain}", detail=False)
    with files.open(f"datasets/{plain}/train.jsonl", "rb") as stream:
        stream.seek(9)
        assert stream.read() == b'{"x": 2}\n'

    HfApi().create_tag(plain, tag="v1", repo_type="dataset")
    HfApi().delete_file("train.jsonl", plain, repo_type="dataset")
    kept = Path(snapshot_download(plain, repo_type="dataset", revision="v1"))
    assert (kept / "train.jsonl").exists()

    constants.HF_HUB_DISABLE_XET = True  # as that variable in the environment does: large files go by Git LFS
    large = np.random.default_rng(1).bytes(3 << 20)
    upload_file(path_or_fileobj=large, path_in_repo="large.bin", repo_id="team/pushed")
    assert Path(hf_hub_download("team/pushed", "large.bin")).read_bytes() == large
    datasets.Dataset.from_dict({"text": ["a", "b"]}).push_to_hub("team/rows")
    assert datasets.load_dataset("team/rows", split="train")["text"][:] == ["a", "b"]
    print("toured")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
