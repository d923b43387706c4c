"""A real S3 server (moto) on loopback, in a process of its own, so that it can die like one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

SERVER = """
import logging, sys
logging.getLogger("werkzeug").disabled = True
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""
BUCKET = "corpus"


@dataclass
class ObjectServer:
    """An S3 server with one empty bucket."""

    url: str
    process: subprocess.Popen[str] = field(repr=False)

    def environment(self) -> dict[str, str]:
        """What the libraries of S3 read."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "somebody",
            "AWS_SECRET_ACCESS_KEY": "a secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_MAX_ATTEMPTS": "1",
        }

    def client(self) -> object:
        """Return boto3's client: files are put there by other code than ours."""
        import boto3

        names = {"aws_access_key_id": "somebody", "aws_secret_access_key": "a secret", "region_name": "us-east-1"}
        return boto3.client("s3", endpoint_url=self.url, **names)

    def put(self, key: str, body: bytes) -> None:
        """Store an object."""
        self.client().put_object(Bucket=BUCKET, Key=key, Body=body)  # type: ignore[attr-defined]

    def delete(self, key: str) -> None:
        """Delete an object."""
        self.client().delete_object(Bucket=BUCKET, Key=key)  # type: ignore[attr-defined]

    def die(self) -> None:
        """Be gone at once."""
        self.process.kill()
        self.process.wait()


@contextmanager
def object_server() -> Iterator[ObjectServer]:
    """Run a server for the length of the block."""
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        text=True,
    )  # fmt: skip
    assert process.stdout is not None
    server = ObjectServer(f"http://127.0.0.1:{process.stdout.readline().strip()}", process)
    try:
        server.client().create_bucket(Bucket=BUCKET)  # type: ignore[attr-defined]
        yield server
    finally:
        process.kill()
        process.communicate()
