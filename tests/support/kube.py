"""An API server in this process: kmock, and what of Kubernetes the operator leans on.

Server-side apply with owned fields, status as a subresource, generations, versions, preconditions,
finalizers, owners' garbage, the selector of listings; and faults: refusals, silence, cut watches.
"""

from __future__ import annotations

import asyncio
import base64
import copy
import datetime
from collections.abc import Callable
from typing import Any

import aiohttp.web
import attrs
import kmock
from kmock._internal.rendering import Request

Object = dict[str, Any]
RESOURCES = {
    "midwatch.dev/v1alpha1/trainingruns": ("TrainingRun", True, {"status"}),
    "midwatch.dev/v1alpha1/interventions": ("Intervention", True, {"status"}),
    "midwatch.dev/v1alpha1/interventionapprovals": ("InterventionApproval", True, set()),
    "ray.io/v1/rayclusters": ("RayCluster", True, {"status"}),
    "ray.io/v1/rayjobs": ("RayJob", True, {"status"}),
    "v1/pods": ("Pod", True, {"status"}),
    "v1/nodes": ("Node", False, {"status"}),
    "v1/secrets": ("Secret", True, set()),
    "v1/services": ("Service", True, {"status"}),
    "v1/namespaces": ("Namespace", False, set()),
    "events.k8s.io/v1/events": ("Event", True, set()),
    "coordination.k8s.io/v1/leases": ("Lease", True, set()),
}
VERBS = ("get", "list", "watch", "create", "update", "patch", "delete")
CRDS = "apiextensions.k8s.io/v1/customresourcedefinitions"


class Refused(Exception):
    """The server's no. status: of HTTP."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


@attrs.define
class Fault:
    """What goes wrong with the next requests that match. status 0: the connection is cut."""

    matches: Callable[[Request], bool]
    status: int
    times: int = 1
    after: bool = False
    struck: int = 0


@attrs.define(kw_only=True)
class ApiServer(kmock.KubernetesEmulator):
    """The server. writes: (method, plural, name, subresource) of all that changed something.

    lost_nodes: nodes whose kubelet ends no pod any more. mute: watches tell nothing.
    """

    faults: list[Fault] = attrs.field(factory=list)
    writes: list[tuple[str, str, str, str]] = attrs.field(factory=list)
    lost_nodes: set[str] = attrs.field(factory=set)
    mute: bool = False
    delay_s: float = 0.0
    _version: int = 100
    _owned: dict[Any, Object] = attrs.field(factory=dict)

    def serve(self, *leave_out: str) -> None:
        """Declare every resource but those left out."""
        for name, (kind, namespaced, subresources) in RESOURCES.items():
            if name in leave_out:
                self.resources.pop(name, None)
                continue
            self.resources[name] = kmock.ResourceInfo(
                kind=kind, namespaced=namespaced, verbs=set(VERBS), subresources=subresources
            )

    def fail(self, method: str, plural: str, status: int, times: int = 1, **more: Any) -> Fault:
        """Refuse the next requests of a method for a resource; plural "" for any."""

        def matches(request: Request) -> bool:
            where = request.resource.plural if request.resource is not None else ""
            is_watch = request.params.get("watch") == "true"
            is_meant = (method == "WATCH") == is_watch if method in ("WATCH", "GET") else True
            same = request.method.value.upper() == ("GET" if method == "WATCH" else method)
            return same and is_meant and plural in ("", where)

        fault = Fault(matches, status, times, **more)
        self.faults.append(fault)
        return fault

    # --- the cluster as its own controllers and people change it ------------------------------

    async def put(self, resource: str, body: Object) -> Object:
        """Create or replace an object as somebody else would, status and all."""
        async with self._lock:
            return await self._store(_parsed(resource), copy.deepcopy(body), keeps_spec=False)

    async def drop(self, resource: str, namespace: str | None, name: str) -> None:
        """Make an object be gone at once."""
        async with self._lock:
            await self._erase((_parsed(resource), namespace, name))

    def find(self, resource: str, namespace: str | None, name: str) -> Object | None:
        """Return an object as it is now."""
        key = _parsed(resource), namespace, name
        known = self._known(key)
        return None if known is None or known.deleted else copy.deepcopy(known.raw)

    def all(self, resource: str) -> list[Object]:
        """Return all objects of a resource as they are now."""
        wanted = _parsed(resource)
        return [
            copy.deepcopy(known.raw)
            for (where, _, _), known in self._objects.items()
            if where == wanted and not known.deleted
        ]

    async def cut_watches(self, code: int = 410) -> None:
        """Tell every watch that its version is too old."""
        gone = {"kind": "Status", "code": code, "reason": "Expired", "message": "too old"}
        for bus in self._buses.values():
            await bus.put({"type": "ERROR", "object": gone})

    # --- requests -----------------------------------------------------------------------------

    async def _handle(self, request: Request) -> aiohttp.web.StreamResponse:
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        fault = next((f for f in self.faults if f.times > 0 and f.matches(request)), None)
        if fault is not None:
            fault.times -= 1
            fault.struck += 1
            if not fault.after:
                return _refusal(fault.status, "planned", request)
        method = request.method.value.upper()
        if request.resource is None or method == "GET":
            return await self._serve(request)
        async with self._lock:
            try:
                answer = await self._change(method, request)
            except Refused as error:
                return _refusal(error.status, error.message, request)
        if fault is not None:
            return _refusal(fault.status, "planned, after it was done", request)
        return aiohttp.web.json_response(answer)

    async def _serve(self, request: Request) -> aiohttp.web.StreamResponse:
        selector = request.params.get("labelSelector", "")
        is_list = request.resource is not None and not request.name
        if not is_list or request.params.get("watch") == "true" or not selector:
            return await kmock.KubernetesScaffold._handle(self, request)
        async with self._lock:
            found = [
                known.raw
                for (where, place, _), known in self._objects.items()
                if where == request.resource
                and request.namespace in (None, place)
                and not known.deleted
                and selector in (known.raw["metadata"].get("labels") or {})
            ]
        return aiohttp.web.json_response({"metadata": {"resourceVersion": "1"}, "items": found})

    async def _change(self, method: str, request: Request) -> Object:
        assert request.resource is not None
        if request.resource not in self.resources:
            raise Refused(404, "no such resource")
        body = request.data if isinstance(request.data, dict) else {}
        name = request.name or (body.get("metadata") or {}).get("name")
        key = request.resource, request.namespace, name
        known = self._known(key)
        current = None if known is None or known.deleted else copy.deepcopy(known.raw)
        answer = await self._changed(method, request, key, current, body)
        self.writes.append((method, request.resource.plural or "", name, request.subresource or ""))
        return answer

    async def _changed(
        self, method: str, request: Request, key: Any, current: Object | None, body: Object
    ) -> Object:
        if method == "POST":
            if current is not None:
                raise Refused(409, "already exists")
            return await self._store(key[0], body, namespace=key[1])
        is_apply = request.headers.get("Content-Type", "").startswith("application/apply-patch")
        if current is None:
            if not is_apply or request.subresource or (body.get("metadata") or {}).get("uid"):
                raise Refused(404, "not found")
            self._owned[(key, request.params["fieldManager"], None)] = copy.deepcopy(body)
            return await self._store(key[0], body, namespace=key[1])
        if method == "DELETE":
            return await self._delete(key, current, body)
        _check(current, body)
        if is_apply:
            owner = key, request.params["fieldManager"], request.subresource
            before = self._owned.get(owner, {})
            self._owned[owner] = copy.deepcopy(body)
            changed = _merged(_without(current, before, body), body)
        elif method == "PATCH":
            changed = _merged(current, body)
        else:
            changed = body
        if request.subresource == "status":
            changed = {**current, "status": changed.get("status")}
        elif "status" in RESOURCES.get(_name(key[0]), ("", True, set()))[2]:
            changed = {**changed, "status": current.get("status")}
        return await self._store(key[0], changed, namespace=key[1])

    async def _delete(self, key: Any, current: Object, options: Object) -> Object:
        uid = (options.get("preconditions") or {}).get("uid")
        meta = current["metadata"]
        if uid is not None and uid != meta["uid"]:
            raise Refused(409, "uid differs")
        now = datetime.datetime.now(tz=datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        node = (current.get("spec") or {}).get("nodeName")
        stays = node in self.lost_nodes and options.get("gracePeriodSeconds") != 0
        if meta.get("finalizers") or stays:
            meta.setdefault("deletionTimestamp", now)
            return await self._store(key[0], current, namespace=key[1])
        await self._erase(key)
        return current

    def _known(self, key: Any) -> Any:
        # The mapping of kmock has no get().
        return self._objects[key] if key in self._objects else None  # noqa: SIM401

    # --- storage ------------------------------------------------------------------------------

    async def _store(
        self, resource: Any, body: Object, namespace: str | None = None, keeps_spec: bool = True
    ) -> Object:
        meta = body.setdefault("metadata", {})
        namespace = namespace or meta.get("namespace")
        if namespace:
            meta["namespace"] = namespace
        key = resource, namespace, meta["name"]
        known = self._known(key)
        before = None if known is None or known.deleted else known.raw
        self._version += 1
        meta["resourceVersion"] = str(self._version)
        meta.setdefault("uid", before["metadata"]["uid"] if before else f"uid-{self._version}")
        meta.setdefault(
            "creationTimestamp",
            datetime.datetime.now(tz=datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        )
        generation = before["metadata"].get("generation", 1) if before else 1
        is_new_spec = before is not None and before.get("spec") != body.get("spec")
        meta["generation"] = generation + 1 if is_new_spec else generation
        if body.get("status") is None:
            body.pop("status", None)
        if body.get("stringData"):
            plain = body.pop("stringData")
            data = {
                field: base64.b64encode(text.encode()).decode() for field, text in plain.items()
            }
            body["data"] = {**(body.get("data") or {}), **data}
        is_pod = bool((body.get("spec") or {}).get("nodeName"))
        is_done = meta.get("deletionTimestamp") and not meta.get("finalizers")
        if is_done and keeps_spec and not is_pod:
            self._objects[key] = body
            await self._erase(key)
            return body
        self._objects[key] = body
        await self._publish(resource, "ADDED" if before is None else "MODIFIED", body)
        return copy.deepcopy(body)

    async def _erase(self, key: Any) -> None:
        known = self._known(key)
        if known is None or known.deleted:
            return
        gone = known.raw
        del self._objects[key]
        for owner in [o for o in self._owned if o[0] == key]:
            del self._owned[owner]
        await self._publish(key[0], "DELETED", gone)
        uid = gone["metadata"]["uid"]
        for other, child in list(self._objects.items()):
            owners = [] if child.deleted else child.raw["metadata"].get("ownerReferences") or []
            if any(each["uid"] == uid for each in owners):
                await self._erase(other)

    async def _publish(self, resource: Any, kind: str, body: Object) -> None:
        if not self.mute:
            await self._buses[resource].put({"type": kind, "object": copy.deepcopy(body)})


def _parsed(name: str) -> Any:
    return kmock.resource(name)


def _name(resource: Any) -> str:
    group = f"{resource.group}/" if resource.group else ""
    return f"{group}{resource.version}/{resource.plural}"


def _check(current: Object, body: Object) -> None:
    meta, known = body.get("metadata") or {}, current["metadata"]
    for field in ("uid", "resourceVersion"):
        if meta.get(field) is not None and meta[field] != known[field]:
            raise Refused(409, f"{field} differs")


def _merged(base: Any, patch: Any) -> Any:
    if not isinstance(base, dict) or not isinstance(patch, dict):
        return copy.deepcopy(patch)
    found = dict(base)
    for name, value in patch.items():
        if value is None:
            found.pop(name, None)
        else:
            found[name] = _merged(found.get(name, {} if isinstance(value, dict) else None), value)
    return found


def _without(base: Any, before: Any, now: Any) -> Any:
    """base without the fields that this manager applied before, and does not any more."""
    if not isinstance(base, dict) or not isinstance(before, dict):
        return base
    found = dict(base)
    for name, value in before.items():
        if name not in now:
            found.pop(name, None)
        elif isinstance(value, dict) and isinstance(now[name], dict):
            found[name] = _without(found.get(name), value, now[name])
    return found


def _refusal(status: int, message: str, request: Request) -> aiohttp.web.Response:
    if status == 0:
        raw = request._raw_request
        if raw is not None and raw.transport is not None:
            raw.transport.abort()
        status = 500
    body = {"kind": "Status", "status": "Failure", "code": status, "message": message}
    headers = {"Retry-After": "0"} if status == 429 else {}
    return aiohttp.web.json_response(body, status=status, headers=headers)
