"""Files by content: on this disk, and in a store elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from catena.core.errors import DataError, IntegrityError
from catena.core.types import ModelVersion
from catena.hub.files import inside
from catena.hub.fsck import check, collect_garbage
from catena.hub.store import Store, init_store


def put(store: Store, folder: Path, text: str = "weights") -> ModelVersion:
    folder.mkdir(exist_ok=True)
    (folder / "model.safetensors").write_text(text)
    (folder / "part").mkdir(exist_ok=True)
    (folder / "part" / "config.json").write_text("{}")
    model = store.put_model(folder)
    stored = store.index.add_artifact(model)
    assert isinstance(stored, ModelVersion)
    store.index.add_name("m", stored.digest)
    return stored


def test_a_model_in_a_store_elsewhere_is_laid_out_and_verified(tmp_path: Path) -> None:
    store = init_store(tmp_path / ".catena", files_url="memory://models-elsewhere")
    model = put(store, tmp_path / "model")
    folder = store.checkout(model)
    assert (folder / "part" / "config.json").read_text() == "{}"
    assert not check(store)
    assert not list((tmp_path / ".catena" / "objects").rglob("*"))
    (file,) = [file for file in model.files if file.path == "model.safetensors"]
    with store.files.fs.open(store.files._path(file.sha256), "wb") as stream:
        stream.write(b"w3ights")
    collect_garbage(store)
    with pytest.raises(IntegrityError, match=r"model\.safetensors"):
        store.checkout(model)
    store.close()


def test_a_checkout_that_somebody_wrote_into_is_laid_out_again(store: Store, tmp_path: Path) -> None:
    model = put(store, tmp_path / "model")
    folder = store.checkout(model)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").write_text("not what was stored")
    assert (store.checkout(model) / "model.safetensors").read_text() == "weights"
    assert not check(store)


def test_bytes_that_were_damaged_are_mended_when_the_same_file_is_stored_again(store: Store, tmp_path: Path) -> None:
    model = put(store, tmp_path / "model")
    path = Path(store.files._path(model.files[0].sha256))
    path.chmod(0o644)
    path.write_text("w3ights")
    assert [finding.file for finding in check(store)] == [model.files[0].path]
    put(store, tmp_path / "model")
    assert not check(store)


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a/../../x", "a\\b", "a\0b", ""])
def test_paths_that_lead_out_of_an_artifact_are_refused(path: str) -> None:
    with pytest.raises(DataError):
        inside(path)


def test_forgetting_a_version_leaves_its_tag_on_nothing_and_its_number_used(store: Store, tmp_path: Path) -> None:
    first = put(store, tmp_path / "one", "one")
    store.tag("m@1", "production")
    second = put(store, tmp_path / "two", "two")
    store.tag("m@2", "production")
    store.index.remove_artifact(second.digest)
    assert ("m", "production") not in store.index.tags()
    assert store.resolve("m") == first
    third = put(store, tmp_path / "three", "three")
    assert store.resolve("m@3").digest == third.digest
