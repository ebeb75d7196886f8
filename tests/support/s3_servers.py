"""Real S3 services on loopback, each a process of its own, and the storage that names them."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from midwatch.logbook.tiers import Storage

ACCESS_KEY, SECRET_KEY = "AKIAMIDWATCHTEST", "not-a-secret-of-anyone"
BUCKET = "checkpoints"
START_DEADLINE_S = 60.0


class Endpoint(msgspec.Struct, frozen=True):
    """A running service. is_strict: it checks signatures and checksums as S3 does."""

    url: str
    is_strict: bool

    def storage(self, folder: Path, **changes: Any) -> Storage:
        """Return a storage in a prefix of its own, with small parts and short waits."""
        settings: dict[str, Any] = {
            "url": f"s3://{BUCKET}/{folder.name}",
            "local_root": str(folder / "node"),
            "endpoint_url": self.url,
            "path_style": True,
            "part_mib": 5,
            "timeout_s": 10.0,
            "retry_max_s": 0.5,
        }
        return Storage(**(settings | changes))


def set_credentials(environment: Any) -> None:
    """Put the credentials that the services know where the standard chain looks first."""
    environment["AWS_ACCESS_KEY_ID"] = ACCESS_KEY
    environment["AWS_SECRET_ACCESS_KEY"] = SECRET_KEY
    environment["AWS_EC2_METADATA_DISABLED"] = "true"


def lend_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have this process find the credentials until its test is over."""
    found: dict[str, str] = {}
    set_credentials(found)
    for name, value in found.items():
        monkeypatch.setenv(name, value)


def write_key(path: Path, access_key: str, secret_key: str = SECRET_KEY) -> None:
    """Put a key into a shared credentials file, at once, as whoever renews one does."""
    fresh = path.with_suffix(".new")
    fresh.write_text(
        f"[default]\naws_access_key_id = {access_key}\naws_secret_access_key = {secret_key}\n"
    )
    fresh.replace(path)


def client(endpoint: Endpoint) -> Any:
    """Return a client of the test's own, to look behind the back of the code under test."""
    import boto3
    from botocore.config import Config

    return boto3.client(
        "s3",
        endpoint_url=endpoint.url,
        region_name="us-east-1",
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
        config=Config(
            s3={"addressing_style": "path"}, request_checksum_calculation="when_required"
        ),
    )


@contextlib.contextmanager
def moto(folder: Path) -> Iterator[Endpoint]:
    """Run moto's server: every call there is, and no check of any signature or checksum."""
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with _running(command, folder, Endpoint(f"http://127.0.0.1:{port}", is_strict=False)) as found:
        yield found


def weed_path() -> str | None:
    """Return SeaweedFS's program, None where it is not installed."""
    beside = Path(sys.executable).with_name("weed")
    return str(beside) if beside.exists() else shutil.which("weed")


@contextlib.contextmanager
def seaweed(folder: Path) -> Iterator[Endpoint]:
    """Run SeaweedFS: signatures, checksums and conditional writes as S3 has them."""
    program = weed_path()
    assert program is not None
    credentials = [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}]
    identity = {"name": "test", "credentials": credentials, "actions": ["Admin"]}
    config = folder / "s3.json"
    config.write_text(json.dumps({"identities": [identity]}))
    (folder / "data").mkdir()
    names = ("s3", "master", "volume", "filer")
    ports = dict(zip([*names, *(f"{n}.grpc" for n in names)], free_ports(8), strict=True))
    options = {
        "dir": folder / "data",
        "ip": "127.0.0.1",
        "ip.bind": "127.0.0.1",
        "s3.config": config,
        "s3.autoCreateBucket": "false",
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,
        "master.volumeSizeLimitMB": 1024,
        "volume.max": 40,
        **{f"{name}.port": ports[name] for name in names},
        **{f"{name}.port.grpc": ports[f"{name}.grpc"] for name in names},
    }
    command = [program, "-logtostderr=true", "server", "-s3"]
    command += [f"-{name}={value}" for name, value in options.items()]
    endpoint = Endpoint(f"http://127.0.0.1:{ports['s3']}", is_strict=True)
    with _running(command, folder, endpoint) as found:
        yield found


@contextlib.contextmanager
def _running(command: list[str], folder: Path, endpoint: Endpoint) -> Iterator[Endpoint]:
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
    try:
        _await_bucket(server, endpoint, folder / "server.log")
        yield endpoint
    finally:
        server.kill()
        server.wait()


def _await_bucket(server: subprocess.Popen[bytes], endpoint: Endpoint, log: Path) -> None:
    deadline_s = time.monotonic() + START_DEADLINE_S
    while True:
        try:
            _answer(endpoint.url)
            client(endpoint).create_bucket(Bucket=BUCKET)
            # A service may take a bucket before it can store anything in one.
            client(endpoint).put_object(Bucket=BUCKET, Key="ready", Body=b"x")
            return
        except Exception as error:
            if time.monotonic() > deadline_s or server.poll() is not None:
                raise AssertionError(f"no answer: {log.read_text()[-2000:]}") from error
            time.sleep(0.05)


def _answer(url: str) -> None:
    try:
        urllib.request.urlopen(url, timeout=5.0).close()
    except urllib.error.HTTPError:
        return


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on at this moment."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def environment() -> dict[str, str]:
    """Return this process's environment with the credentials in it, for a child."""
    found = dict(os.environ)
    set_credentials(found)
    return found
