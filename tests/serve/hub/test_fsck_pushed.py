"""`catena fsck` reads what was pushed too: damage is named with its repository, and the same push mends it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from catena.cli.main import run
from catena.hub.fsck import check, collect_garbage, forget
from catena.hub.store import Store
from catena.serve.hub.app import build_hub
from catena.serve.server import background

DATA = b"pushed " * 1000


@pytest.fixture
def api(store: Store) -> Iterator[HfApi]:
    """The official client of a hub over an empty workspace."""
    with background(build_hub(store)) as url:
        yield HfApi(endpoint=url, token=False)


def place_of(store: Store, data: bytes) -> Path:
    place = store.files.local_path(hashlib.sha256(data).hexdigest())
    assert place is not None
    return place


@pytest.mark.parametrize(
    ("written", "problem"), [(DATA[::-1], "other bytes"), (DATA[:5], "5 bytes"), (None, "missing")]
)
def test_damage_of_pushed_files_is_named_and_mended(
    written: bytes | None, problem: str, api: HfApi, store: Store, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for repo in ("team/a", "team/b"):
        api.create_repo(repo)
        api.upload_file(path_or_fileobj=DATA, path_in_repo="notes.txt", repo_id=repo)
    assert check(store) == []
    place = place_of(store, DATA)
    place.chmod(0o644)
    place.unlink() if written is None else place.write_bytes(written)
    (finding,) = check(store)
    assert (finding.kind, finding.file, finding.names) == ("file", "notes.txt", ("model team/a", "model team/b"))
    assert problem in finding.problem
    assert run(["fsck", "--json", "-w", str(store.root)]) == 6
    assert json.loads(capsys.readouterr().out)["findings"][0]["artifact"] == hashlib.sha256(DATA).hexdigest()
    forget(store, [finding])
    assert not place.exists()
    with pytest.raises(HfHubHTTPError, match="410"):
        api.hf_hub_download("team/a", "notes.txt", local_dir=tmp_path / "gone")
    api.upload_file(path_or_fileobj=DATA, path_in_repo="copy.txt", repo_id="team/a")
    assert check(store) == []
    mended = api.hf_hub_download("team/b", "notes.txt", local_dir=tmp_path / "mended")
    assert Path(mended).read_bytes() == DATA
    collect_garbage(store)
    assert place.exists()
