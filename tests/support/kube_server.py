"""An API server of Kubernetes as far as kubectl needs one: discovery, objects in memory, who asks.

It knows the kinds of midwatch.dev, secrets and namespaces. Its rules are few and its own: what a
CRD or an admission policy would say is for tests/e2e.
"""

from __future__ import annotations

import base64
import json
import threading
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

GROUP, VERSION = "midwatch.dev", "v1alpha1"
OWN = f"apis/{GROUP}/{VERSION}"
KINDS = {
    "trainingruns": ("TrainingRun", ["trun"]),
    "interventions": ("Intervention", ["intv"]),
    "interventionapprovals": ("InterventionApproval", ["intvapp"]),
}
Object = dict[str, Any]


class KubeServer:
    """objects: by (resource, namespace, name). Reading one of forbidden is refused."""

    def __init__(self, user: str = "alice@example.com") -> None:
        self.user = user
        self.objects: dict[tuple[str, str, str], Object] = {}
        self.forbidden: set[str] = set()
        self.has_kinds = True
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server._answer(self, *server._get(urlsplit(self.path).path.strip("/")))

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                server._answer(self, *server._post(urlsplit(self.path).path.strip("/"), body))

            def log_message(self, *args: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,))

    def __enter__(self) -> KubeServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def write_kubeconfig(self, path: Path, namespace: str) -> None:
        """Write a kubeconfig whose context leads here, into a namespace."""
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "here",
            "clusters": [
                {
                    "name": "here",
                    "cluster": {"server": f"http://127.0.0.1:{self._http.server_port}"},
                }
            ],
            "users": [{"name": "me", "user": {}}],
            "contexts": [
                {
                    "name": "here",
                    "context": {"cluster": "here", "user": "me", "namespace": namespace},
                }
            ],
        }
        path.write_text(json.dumps(config))

    def put(self, resource: str, namespace: str, name: str, **fields: Any) -> Object:
        """Keep an object as somebody else would have made it."""
        kind = KINDS[resource][0] if resource in KINDS else resource.rstrip("s").title()
        version = f"{GROUP}/{VERSION}" if resource in KINDS else "v1"
        meta = {"name": name, "namespace": namespace, "uid": str(uuid.uuid4())}
        made = {"apiVersion": version, "kind": kind, "metadata": meta, **fields}
        self.objects[resource, namespace, name] = made
        return made

    def put_secret(self, namespace: str, name: str, **values: str) -> None:
        data = {key: base64.b64encode(value.encode()).decode() for key, value in values.items()}
        self.put("secrets", namespace, name, data=data, type="Opaque")

    # --- what is asked ----------------------------------------------------------------------------

    def _get(self, path: str) -> tuple[int, Object]:
        fixed = self._discovery().get(path)
        if fixed is not None:
            return 200, fixed
        parts = path.split("/")
        if parts[-2:-1] == ["namespaces"]:
            # kubectl looks whether it is the namespace that is not there.
            return 200, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": parts[-1]}}
        if "namespaces" in parts and parts[-1] != "namespaces":
            namespace, resource, *name = parts[parts.index("namespaces") + 1 :]
        else:
            namespace, resource, name = "", parts[-1], []
        if name:
            return self._one(resource, namespace, name[0])
        found = [
            known
            for (kind, place, _), known in self.objects.items()
            if kind == resource and namespace in ("", place)
        ]
        version = f"{GROUP}/{VERSION}" if resource in KINDS else "v1"
        return 200, {"apiVersion": version, "kind": "List", "metadata": {}, "items": found}

    def _one(self, resource: str, namespace: str, name: str) -> tuple[int, Object]:
        if name in self.forbidden:
            told = f'{resource} "{name}" is forbidden: User "{self.user}" cannot get it'
            return 403, _status(403, "Forbidden", told)
        found = self.objects.get((resource, namespace, name))
        if found is None:
            return 404, _status(404, "NotFound", f'{resource} "{name}" not found')
        return 200, found

    def _post(self, path: str, data: bytes) -> tuple[int, Object]:
        if path.endswith("selfsubjectreviews"):
            # kubectl asks in protobuf, with nothing in it, and takes JSON for an answer.
            version = "authentication.k8s.io/v1"
            status = {"userInfo": {"username": self.user}}
            return 201, {"apiVersion": version, "kind": "SelfSubjectReview", "status": status}
        body = json.loads(data)
        parts = path.split("/")
        namespace, resource = parts[parts.index("namespaces") + 1 :]
        if body.get("spec", {}).get("action") == "Dance":
            return 422, _status(
                422, "Invalid", 'The Intervention "x" is invalid: spec.action: Dance'
            )
        meta = body["metadata"]
        name = meta.get("name") or f"{meta['generateName']}{uuid.uuid4().hex[:5]}"
        fields = {key: value for key, value in body.items() if key in ("spec", "data")}
        return 201, self.put(resource, namespace, name, **fields)

    def _discovery(self) -> dict[str, Object]:
        groups = ["authentication.k8s.io/v1", *([f"{GROUP}/{VERSION}"] if self.has_kinds else [])]
        listed = [
            {
                "name": group.partition("/")[0],
                "versions": [{"groupVersion": group, "version": group.partition("/")[2]}],
            }
            for group in groups
        ]
        found: dict[str, Object] = {
            "version": {"major": "1", "minor": "37", "gitVersion": "v1.37.1"},
            "api": {"kind": "APIVersions", "versions": ["v1"]},
            "apis": {"kind": "APIGroupList", "apiVersion": "v1", "groups": listed},
            "api/v1": _resources(
                "v1", {"secrets": ("Secret", []), "namespaces": ("Namespace", [])}
            ),
            "apis/authentication.k8s.io/v1": _resources(
                "authentication.k8s.io/v1", {"selfsubjectreviews": ("SelfSubjectReview", [])}
            ),
        }
        if self.has_kinds:
            found[OWN] = _resources(f"{GROUP}/{VERSION}", KINDS)
            found |= _openapi()
        return found

    def _answer(self, handler: BaseHTTPRequestHandler, status: int, body: Object) -> None:
        data = json.dumps(body).encode()
        handler.send_response(status)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)


def _resources(version: str, kinds: dict[str, tuple[str, list[str]]]) -> Object:
    listed = [
        {
            "name": name,
            "singularName": kind.lower(),
            "namespaced": name not in ("namespaces", "selfsubjectreviews"),
            "kind": kind,
            "shortNames": short,
            "verbs": ["create", "get", "list"],
        }
        for name, (kind, short) in kinds.items()
    ]
    return {"kind": "APIResourceList", "groupVersion": version, "resources": listed}


def _openapi() -> dict[str, Object]:
    """As much as kubectl reads to see that the server itself refuses unknown fields."""
    paths = {
        f"/{OWN}/namespaces/{{namespace}}/{name}/{{name}}": {
            "patch": {
                "parameters": [{"name": "fieldValidation", "in": "query"}],
                "x-kubernetes-group-version-kind": {
                    "group": GROUP,
                    "version": VERSION,
                    "kind": kind,
                },
            }
        }
        for name, (kind, _) in KINDS.items()
    }
    return {
        "openapi/v3": {"paths": {OWN: {"serverRelativeURL": f"/openapi/v3/{OWN}?hash=1"}}},
        f"openapi/v3/{OWN}": {"openapi": "3.0.0", "info": {}, "paths": paths},
    }


def _status(code: int, reason: str, message: str) -> Object:
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "message": message,
        "reason": reason,
        "code": code,
    }
