"""Small real things: datasets and model folders to put into a store, and a PostgreSQL server on loopback."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from catena.core.sample import Sample, sample_id
from catena.core.types import DatasetVersion, ModelVersion
from catena.hub.store import Store

PutDocuments = Callable[..., DatasetVersion]
PutModel = Callable[..., ModelVersion]


@pytest.fixture
def put_documents() -> PutDocuments:
    """Store texts as a dataset under a name, as a run would."""

    def put(store: Store, *texts: str, name: str = "pages") -> DatasetVersion:
        with store.new_dataset("document") as writer:
            for text in texts:
                writer.add(Sample(id=sample_id("page", text), data={"text": text}, source="page"))
            version = writer.commit()
        store.index.add_artifact(version)
        store.index.add_name(name, version.digest)
        return version

    return put


@pytest.fixture
def put_model(tmp_path: Path) -> PutModel:
    """Store a folder that looks like a model under a name."""

    def put(store: Store, weights: bytes = b"weights", name: str = "model", base: str | None = None) -> ModelVersion:
        folder = Path(tempfile.mkdtemp(dir=tmp_path))
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(weights)
        model = store.put_model(folder, base=base)
        store.index.add_artifact(model)
        store.index.add_name(name, model.digest)
        return model

    return put


def find_postgres() -> Path | None:
    """Return the folder of PostgreSQL's programs, or None."""
    candidates = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    for program, arguments in (("pg_config", ["--bindir"]), ("initdb", [])):
        found = shutil.which(program)
        if found and arguments:
            asked = subprocess.run([found, *arguments], capture_output=True, text=True, check=False)
            candidates.append(Path(asked.stdout.strip() or "/nowhere"))
        elif found:
            candidates.append(Path(found).resolve().parent)
    return next(
        (folder for folder in candidates if (folder / "initdb").exists() and (folder / "postgres").exists()), None
    )


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A fresh PostgreSQL server on loopback. It refuses root, so it runs as another user then."""
    programs = find_postgres()
    if programs is None:
        message = "PostgreSQL is not installed (apt-get install postgresql)"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    user = "nobody" if os.geteuid() == 0 else None
    with tempfile.TemporaryDirectory(prefix="catena-pg-", dir="/tmp") as name:
        folder = Path(name)
        if user:
            os.chown(folder, pwd.getpwnam(user).pw_uid, -1)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        data = folder / "data"
        initdb = [str(programs / "initdb"), "-D", str(data), "-U", "catena", "-A", "trust", "-E", "UTF8", "--no-sync"]
        subprocess.run(initdb, user=user, cwd=folder, env={"LC_ALL": "C.UTF-8"}, capture_output=True, check=True)
        server = [str(programs / "postgres"), "-D", str(data), "-h", "127.0.0.1", "-p", str(port), "-k", str(folder)]
        with (folder / "log").open("wb") as log:
            child = subprocess.Popen([*server, "-F"], user=user, cwd=folder, stdout=log, stderr=log)
        try:
            ready = [str(programs / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(port)]
            deadline = time.monotonic() + 300
            while subprocess.run(ready, check=False).returncode != 0:
                if child.poll() is not None or time.monotonic() > deadline:
                    pytest.fail(f"PostgreSQL did not start: {(folder / 'log').read_text()}")
                time.sleep(0.1)
            yield f"postgresql+psycopg://catena@127.0.0.1:{port}/postgres"
        finally:
            child.terminate()
            child.wait(300)
