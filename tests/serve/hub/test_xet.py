"""A client with `hf_xet` and a hub without a Xet store: what works, what falls back, what is refused and how."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, HfApi, constants, hf_hub_download, snapshot_download
from huggingface_hub.utils._runtime import is_xet_available

from catena.hub.store import Store
from catena.serve.hub.app import build_hub
from catena.serve.hub.config import HubConfig
from catena.serve.server import background

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # the client's own
LARGE = bytes(range(256)) * (1 << 13)


@pytest.fixture
def api(store: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[HfApi]:
    """The official client as it is installed: `hf_xet` beside it, and on."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    assert is_xet_available()
    with background(build_hub(store, HubConfig(inline_bytes=1 << 20))) as url:
        api = HfApi(endpoint=url, token=False)
        api.create_repo("org/m")
        yield api


def test_everything_up_to_the_bound_works_with_xet_on(api: HfApi, tmp_path: Path) -> None:
    (tmp_path / "up").mkdir()
    (tmp_path / "up" / "a.bin").write_bytes(LARGE[: 1 << 20])
    api.upload_folder(folder_path=tmp_path / "up", repo_id="org/m")
    down = snapshot_download("org/m", endpoint=api.endpoint, token=False, local_dir=tmp_path / "down")
    assert Path(down, "a.bin").read_bytes() == LARGE[: 1 << 20]


def test_a_large_open_file_falls_back_and_is_downloaded_with_xet_on(api: HfApi, tmp_path: Path) -> None:
    (tmp_path / "large.bin").write_bytes(LARGE)
    with (tmp_path / "large.bin").open("rb") as stream:
        api.create_commit("org/m", [CommitOperationAdd("large.bin", stream)], commit_message="by Git LFS")
    found = hf_hub_download("org/m", "large.bin", endpoint=api.endpoint, token=False, cache_dir=tmp_path / "cache")
    assert Path(found).read_bytes() == LARGE


@pytest.mark.parametrize("form", ["path", "bytes"])
def test_a_large_path_is_refused_with_what_helps_and_works_with_it(
    form: str, api: HfApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "large.bin").write_bytes(LARGE)
    given = tmp_path / "large.bin" if form == "path" else LARGE
    with pytest.raises(Exception, match="HF_HUB_DISABLE_XET=1"):
        api.upload_file(path_or_fileobj=given, path_in_repo="large.bin", repo_id="org/m")
    assert api.list_repo_files("org/m") == [".gitattributes"]
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # as that variable of the environment does
    api.upload_file(path_or_fileobj=given, path_in_repo="large.bin", repo_id="org/m")
    assert api.list_repo_files("org/m") == [".gitattributes", "large.bin"]
