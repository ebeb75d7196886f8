"""The few verbs that the operator has for the API server, and what its refusals mean.

kube-missing     404: the object, or its kind, is not there
kube-conflict    409: it is there already, has changed meanwhile, or is another than was meant
kube-forbidden   401, 403: the operator's rights do not reach
kube-invalid     400, 422: the server does not take the object
kube-unwilling   429, 5xx: later
kube-unreachable no answer at all, or none in time
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import httpx
import msgspec

from ...logbook.errors import Fatal, MidwatchError, Retryable
from . import names
from .access import Access
from .observed import Object

TIMEOUT_S = 15.0
PAGE = 500
_APPLY = "application/apply-patch+yaml"
_MERGE = "application/merge-patch+json"


class Kind(msgspec.Struct, frozen=True):
    """A resource by which objects of one kind are reached."""

    group: str
    version: str
    plural: str
    is_namespaced: bool = True

    @property
    def base(self) -> str:
        group = f"/apis/{self.group}" if self.group else "/api"
        return f"{group}/{self.version}"

    def path(self, namespace: str | None, name: str = "", subresource: str = "") -> str:
        """Return the path of an object, or of all of them."""
        place = f"/namespaces/{namespace}" if self.is_namespaced and namespace else ""
        parts = [self.plural, *filter(None, (name, subresource))]
        return f"{self.base}{place}/{'/'.join(parts)}"


RUNS = Kind(names.GROUP, names.VERSION, "trainingruns")
INTERVENTIONS = Kind(names.GROUP, names.VERSION, "interventions")
APPROVALS = Kind(names.GROUP, names.VERSION, "interventionapprovals")
CLUSTERS = Kind("ray.io", "v1", "rayclusters")
JOBS = Kind("ray.io", "v1", "rayjobs")
PODS = Kind("", "v1", "pods")
NODES = Kind("", "v1", "nodes", is_namespaced=False)
SECRETS = Kind("", "v1", "secrets")
SERVICES = Kind("", "v1", "services")
EVENTS = Kind("events.k8s.io", "v1", "events")
LEASES = Kind("coordination.k8s.io", "v1", "leases")
KINDS = {
    ("v1", "Service"): SERVICES,
    ("v1", "Secret"): SECRETS,
    ("ray.io/v1", "RayCluster"): CLUSTERS,
    (names.API_VERSION, names.INTERVENTION): INTERVENTIONS,
}


class Kube:
    """The API server. guard is called before everything that changes anything; it may refuse."""

    def __init__(self, access: Access, guard: Callable[[], None] = lambda: None) -> None:
        self._access, self.guard = access, guard
        self._http = httpx.AsyncClient(
            base_url=access.server, verify=access.context(), timeout=TIMEOUT_S, trust_env=False
        )

    async def close(self) -> None:
        """Close its connections."""
        await self._http.aclose()

    async def get(self, kind: Kind, namespace: str | None, name: str) -> Object | None:
        """Return an object, None when it is not there."""
        try:
            return await self._ask("GET", kind.path(namespace, name))
        except Fatal as error:
            if error.code == "kube-missing":
                return None
            raise

    async def list(self, kind: Kind, namespace: str | None, labels: str = "") -> list[Object]:
        """Return all objects of a kind, page by page. Raises: Fatal[kube-missing] for no kind."""
        found: list[Object] = []
        params = {"limit": str(PAGE), **({"labelSelector": labels} if labels else {})}
        while True:
            page = await self._ask("GET", kind.path(namespace), params=params)
            found += page.get("items") or ()
            token = (page.get("metadata") or {}).get("continue")
            if not token:
                return found
            params["continue"] = token

    async def serves(self, kind: Kind) -> bool:
        """Whether the API server knows a kind."""
        try:
            found = await self._ask("GET", kind.base)
        except Fatal as error:
            if error.code == "kube-missing":
                return False
            raise
        return any(each.get("name") == kind.plural for each in found.get("resources") or ())

    async def apply(
        self, kind: Kind, body: Object, manager: str = names.FIELD_MANAGER, subresource: str = ""
    ) -> Object:
        """Apply an object by server-side apply; fields of ours that others took are taken back."""
        meta = body["metadata"]
        path = kind.path(meta.get("namespace"), meta["name"], subresource)
        params = {"fieldManager": manager, "force": "true"}
        return await self._change("PATCH", path, body, params=params, content_type=_APPLY)

    async def create(self, kind: Kind, body: Object) -> Object:
        """Create an object. Raises: Retryable[kube-conflict] when the name is taken."""
        return await self._change("POST", kind.path(body["metadata"].get("namespace")), body)

    async def replace(self, kind: Kind, body: Object) -> Object:
        """Replace an object. Raises: Retryable[kube-conflict] when it has changed meanwhile."""
        meta = body["metadata"]
        return await self._change("PUT", kind.path(meta.get("namespace"), meta["name"]), body)

    async def merge(self, kind: Kind, namespace: str | None, name: str, patch: Object) -> Object:
        """Merge a patch into an object; a resourceVersion in it must still be the object's."""
        path = kind.path(namespace, name)
        return await self._change("PATCH", path, patch, content_type=_MERGE)

    async def delete(
        self, kind: Kind, namespace: str | None, name: str, uid: str, *, is_forced: bool = False
    ) -> None:
        """Delete the object with this uid; one that is gone, or is another by now, is left."""
        options: Object = {"preconditions": {"uid": uid}, "propagationPolicy": "Background"}
        if is_forced:
            options["gracePeriodSeconds"] = 0
        try:
            await self._change("DELETE", kind.path(namespace, name), options)
        except MidwatchError as error:
            if error.code not in ("kube-missing", "kube-conflict"):
                raise

    async def _change(
        self,
        method: str,
        path: str,
        body: Object,
        *,
        params: Mapping[str, str] | None = None,
        content_type: str = "application/json",
    ) -> Object:
        self.guard()
        return await self._ask(method, path, body, params=params, content_type=content_type)

    async def _ask(
        self,
        method: str,
        path: str,
        body: Object | None = None,
        *,
        params: Mapping[str, str] | None = None,
        content_type: str = "application/json",
    ) -> Object:
        headers = {"Content-Type": content_type, "Accept": "application/json"}
        authorization = self._access.header()
        if authorization:
            headers["Authorization"] = authorization
        content = msgspec.json.encode(body) if body is not None else None
        try:
            answer = await self._http.request(
                method, path, content=content, headers=headers, params=params
            )
        except httpx.HTTPError as error:
            raise Retryable(
                "kube-unreachable",
                f"{method} {path}: the API server does not answer ({type(error).__name__}).",
                delay_s=2.0,
            ) from error
        if answer.is_error:
            raise _refusal(method, path, answer)
        found: Any = msgspec.json.decode(answer.content) if answer.content else {}
        return found if isinstance(found, dict) else {}


def _refusal(method: str, path: str, answer: httpx.Response) -> MidwatchError:
    try:
        said = str(msgspec.json.decode(answer.content).get("message", ""))[:300]
    except (msgspec.DecodeError, AttributeError):
        said = answer.reason_phrase
    status = answer.status_code
    text = f"{method} {path}: {status} {said}"
    if status == 404:
        return Fatal("kube-missing", text)
    if status == 409:
        return Retryable("kube-conflict", text, delay_s=1.0)
    if status in (401, 403):
        return Fatal(
            "kube-forbidden", text, remedy="Compare the operator's Role with manifests/rbac."
        )
    if status == 429 or status >= 500:
        told = answer.headers.get("Retry-After", "")
        return Retryable("kube-unwilling", text, delay_s=float(told) if told.isdecimal() else 2.0)
    return Fatal("kube-invalid", text)
