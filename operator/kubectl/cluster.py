"""The Kubernetes cluster as kubectl sees it: contexts, logins and proxies are its business."""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from typing import Any

import msgspec

from ...logbook.errors import ConfigError, Fatal, MidwatchError, Retryable
from ..cli.runs import NotFoundError

GROUP = "midwatch.dev"
RUNS = f"trainingruns.{GROUP}"
CALL_TIMEOUT_S = 60.0
_MAX_MESSAGE = 1200
_AWAY = (
    "Unable to connect to the server",
    "was refused - did you specify the right host or port",
    "(Timeout)",
    "(ServiceUnavailable)",
    "(TooManyRequests)",
    "i/o timeout",
    "the server is currently unable",
)
_LOG_LINE = re.compile(r"[IWEF]\d{4} ")
_NO_KIND = ("the server doesn't have a resource type", "no matches for kind", "ensure CRDs are")


class Forbidden(Fatal):
    """The cluster knows who asks, and does not let them."""


class Kubectl(msgspec.Struct, frozen=True):
    """kubectl with the flags that say where to and as whom; their paths are relative to folder."""

    program: str
    folder: str
    connection: tuple[str, ...] = ()

    def command(self, *words: str) -> list[str]:
        return [self.program, *words, *self.connection]

    def call(self, *words: str, given: bytes = b"") -> str:
        """Return what kubectl prints.

        Raises: NotFoundError[no-such-object, midwatch-not-installed]; Forbidden[forbidden];
            ConfigError[object-invalid]; Retryable[kubernetes-unreachable]; Fatal[kubectl-failed].
        """
        try:
            done = subprocess.run(
                self.command(*words),
                input=given,
                cwd=self.folder,
                capture_output=True,
                check=False,
                timeout=CALL_TIMEOUT_S,
            )
        except subprocess.TimeoutExpired as error:
            raise Retryable(
                "kubernetes-unreachable",
                f"`kubectl {words[0]}` had no answer in {CALL_TIMEOUT_S:.0f} s.",
                delay_s=5.0,
            ) from error
        if done.returncode:
            raise _as_ours(words, done.stderr.decode(errors="replace").strip())
        return done.stdout.decode(errors="replace")

    def get(self, kind: str, name: str) -> dict[str, Any]:
        """Return one object. Raises as call."""
        found = json.loads(self.call("get", kind, name, "-o", "json"))
        assert isinstance(found, dict)
        return found

    def names(self, kind: str) -> list[str]:
        """Return the names of all objects of a kind. Raises as call."""
        listed = self.call("get", kind, "-o", "name").split()
        return [word.rpartition("/")[2] for word in listed]

    def secret(self, name: str, key: str) -> str:
        """Return one value of a Secret. Raises as call; Fatal[secret-invalid]."""
        data = self.get("secret", name).get("data") or {}
        try:
            return base64.b64decode(data[key], validate=True).decode("ascii").strip()
        except (KeyError, binascii.Error, UnicodeDecodeError) as error:
            raise Fatal(
                "secret-invalid",
                f"the secret {name} holds no {key} that is a token.",
                remedy="Delete it; the operator makes a new one.",
            ) from error

    def user(self) -> str:
        """Return who the cluster takes the caller for. Raises as call."""
        review = json.loads(self.call("auth", "whoami", "-o", "json"))
        return str(review["status"]["userInfo"]["username"])


def find_kubectl(connection: Sequence[str]) -> Kubectl:
    """Return kubectl as found on the path. Raises: Fatal[kubectl-missing]."""
    program = shutil.which("kubectl")
    if program is None:
        raise Fatal(
            "kubectl-missing", "there is no kubectl on the path.", remedy="Install kubectl."
        )
    return Kubectl(program, os.getcwd(), tuple(connection))


def _as_ours(words: Sequence[str], told: str) -> MidwatchError:
    lines = [line for line in told.splitlines() if not _LOG_LINE.match(line)]
    brief = "\n".join(lines)[:_MAX_MESSAGE].rstrip(".")
    brief = brief or f"`kubectl {words[0]}` failed and said nothing"
    if "(NotFound)" in told:
        return NotFoundError(
            "no-such-object", f"{brief}.", remedy="`kubectl get trun -A` lists all runs."
        )
    if any(sign in told for sign in _NO_KIND):
        return NotFoundError(
            "midwatch-not-installed",
            f"the cluster does not know the kinds of {GROUP}: {brief}.",
            remedy="Install them: docs/kubernetes.md.",
        )
    if "(Forbidden)" in told or "(Unauthorized)" in told or "must be logged in" in told:
        return Forbidden(
            "forbidden", f"{brief}.", remedy="Roles for people: docs/kubernetes.md, Who may what."
        )
    if " is invalid: " in told or "(Invalid)" in told or "(BadRequest)" in told:
        return ConfigError("object-invalid", f"{brief}.")
    if any(sign in told for sign in _AWAY):
        return Retryable("kubernetes-unreachable", f"{brief}.", delay_s=5.0)
    return Fatal("kubectl-failed", f"{brief}.")
