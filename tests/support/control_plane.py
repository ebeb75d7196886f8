"""A real control plane of Kubernetes: one that is named, or etcd and kube-apiserver started here.

MIDWATCH_E2E_KUBECONFIG names the kubeconfig of an administrator of a cluster to throw away.
KUBEBUILDER_ASSETS names a folder with `etcd` and `kube-apiserver`, as setup-envtest lays it out.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

Object = dict[str, Any]
KUBECTL = Path(sys.executable).with_name("kubectl")
BINARIES = ("etcd", "kube-apiserver")
START_TIMEOUT_S = 120.0
CALL_TIMEOUT_S = 120.0


class Refused(Exception):
    """kubectl ended with a complaint, which is the text."""


class Plane:
    """A control plane, spoken to by the real kubectl."""

    def __init__(self, kubeconfig: Path) -> None:
        self.kubeconfig = kubeconfig

    def kubectl(self, *words: str, given: str = "", user: str = "", group: str = "") -> str:
        """Return what kubectl prints, as the administrator or as a user. Raises: Refused."""
        who = ["--as", user, "--as-group", group or "system:authenticated"] if user else []
        done = subprocess.run(
            [KUBECTL, "--kubeconfig", self.kubeconfig, *words, *who],
            input=given,
            capture_output=True,
            text=True,
            check=False,
            timeout=CALL_TIMEOUT_S,
        )
        if done.returncode:
            raise Refused(done.stderr)
        return done.stdout

    def apply(self, objects: list[Object], *options: str) -> None:
        """Apply objects by server-side apply. Raises: Refused."""
        # In JSON: PyYAML would leave the text 1e-6 bare, which is a number to Kubernetes.
        text = "".join(f"---\n{json.dumps(known)}\n" for known in objects)
        who = ("--field-manager", "midwatch-e2e", "--force-conflicts")
        self.kubectl("apply", "--server-side", *who, *options, "-f", "-", given=text)

    def create(self, body: Object, user: str = "", group: str = "") -> Object:
        """Create one object as somebody. Raises: Refused."""
        words = ("create", "-f", "-", "-o", "json")
        made = json.loads(self.kubectl(*words, given=json.dumps(body), user=user, group=group))
        assert isinstance(made, dict)
        return made

    def get(self, kind: str, name: str, namespace: str = "") -> Object:
        """Return one object. Raises: Refused."""
        place = ("-n", namespace) if namespace else ()
        found = json.loads(self.kubectl("get", kind, name, "-o", "json", *place))
        assert isinstance(found, dict)
        return found

    def has(self, resource: str) -> bool:
        """Whether somebody has brought along a resource, as NAME.GROUP."""
        return bool(self.kubectl("get", "crd", resource, "--ignore-not-found", "-o", "name"))

    def as_account(self, namespace: str, account: str, path: Path) -> Path:
        """Write a kubeconfig by which a program is a service account, and return its path."""
        config = yaml.safe_load(self.kubectl("config", "view", "--raw", "--minify", "--flatten"))
        token = self.kubectl("create", "token", account, "-n", namespace).strip()
        config["users"] = [{"name": config["users"][0]["name"], "user": {"token": token}}]
        path.write_text(yaml.safe_dump(config))
        return path


def why_none() -> str:
    """Return why there is no control plane to test with, "" when there is one."""
    assets = os.environ.get("KUBEBUILDER_ASSETS", "")
    if os.environ.get("MIDWATCH_E2E_KUBECONFIG"):
        return ""
    if assets and all(os.access(Path(assets) / name, os.X_OK) for name in BINARIES):
        return ""
    return "neither MIDWATCH_E2E_KUBECONFIG nor KUBEBUILDER_ASSETS leads to a control plane"


@contextmanager
def control_plane(folder: Path) -> Iterator[Plane]:
    """Give the control plane that is named, or one started in folder and ended afterwards."""
    named = os.environ.get("MIDWATCH_E2E_KUBECONFIG")
    if named:
        yield Plane(Path(named))
        return
    assets = Path(os.environ["KUBEBUILDER_ASSETS"])
    with ExitStack() as stack:
        etcd = f"http://127.0.0.1:{_free_port()}"
        peers = f"http://127.0.0.1:{_free_port()}"
        words = [f"--data-dir={folder}/etcd", "--unsafe-no-fsync"]
        words += [f"--listen-client-urls={etcd}", f"--advertise-client-urls={etcd}"]
        stack.enter_context(
            _process(folder, assets / "etcd", *words, f"--listen-peer-urls={peers}")
        )
        token, port = secrets.token_hex(16), _free_port()
        flags = _server_flags(folder, etcd, port, token)
        server = stack.enter_context(_process(folder, assets / "kube-apiserver", *flags))
        url = f"https://127.0.0.1:{port}"
        _await_ready(url, token, server, folder)
        yield Plane(_write_kubeconfig(folder, url, token))


def _server_flags(folder: Path, etcd: str, port: int, token: str) -> list[str]:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    )
    (folder / "accounts.pem").write_bytes(pem)
    (folder / "tokens.csv").write_text(f'{token},admin,admin,"system:masters"\n')
    return [
        f"--etcd-servers={etcd}",
        f"--secure-port={port}",
        "--bind-address=127.0.0.1",
        f"--cert-dir={folder}/certs",
        f"--service-account-issuer=https://127.0.0.1:{port}/",
        f"--service-account-key-file={folder}/accounts.pem",
        f"--service-account-signing-key-file={folder}/accounts.pem",
        "--service-cluster-ip-range=10.0.0.0/24",
        "--authorization-mode=RBAC",
        f"--token-auth-file={folder}/tokens.csv",
        # Nobody makes the default service account that it would wait for.
        "--disable-admission-plugins=ServiceAccount",
    ]


@contextmanager
def _process(folder: Path, program: Path, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    with (folder / f"{program.name}.log").open("wb") as log:
        process = subprocess.Popen([program, *words], stdout=log, stderr=subprocess.STDOUT)
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(20.0)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _await_ready(url: str, token: str, server: subprocess.Popen[bytes], folder: Path) -> None:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    headers = {"Authorization": f"Bearer {token}"}
    while time.monotonic() < deadline_s and server.poll() is None:
        try:
            if httpx.get(f"{url}/readyz", headers=headers, verify=False).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.1)
    log = (folder / "kube-apiserver.log").read_text(errors="replace")[-3000:]
    raise AssertionError(f"kube-apiserver was not ready in {START_TIMEOUT_S:.0f} s:\n{log}")


def _write_kubeconfig(folder: Path, url: str, token: str) -> Path:
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "e2e",
        "clusters": [{"name": "e2e", "cluster": {"server": url, "insecure-skip-tls-verify": True}}],
        "users": [{"name": "e2e", "user": {"token": token}}],
        "contexts": [{"name": "e2e", "context": {"cluster": "e2e", "user": "e2e"}}],
    }
    path = folder / "kubeconfig"
    path.write_text(yaml.safe_dump(config))
    return path


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
