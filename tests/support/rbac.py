"""Who may do what under a set of manifests: the rules of Kubernetes' RBAC, over plain objects."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

Object = dict[str, Any]
ACCOUNT = "system:serviceaccount:"


class Ask(NamedTuple):
    """One question. resource may be RESOURCE/SUBRESOURCE; namespace "" asks for all of them."""

    user: str
    verb: str
    resource: str
    group: str = ""
    namespace: str = ""
    name: str = ""


class Rbac:
    """The roles and bindings among objects."""

    def __init__(self, objects: Iterable[Object]) -> None:
        self._roles: dict[tuple[str, str, str], list[Object]] = {}
        self._bindings: list[Object] = []
        for known in objects:
            meta = known["metadata"]
            if known["kind"] in ("Role", "ClusterRole"):
                place = meta.get("namespace", "")
                self._roles[known["kind"], place, meta["name"]] = known.get("rules") or []
            elif known["kind"] in ("RoleBinding", "ClusterRoleBinding"):
                self._bindings.append(known)

    @property
    def dangling(self) -> list[str]:
        """Bindings whose role is not among the objects."""
        return [b["metadata"]["name"] for b in self._bindings if self._rules(b) is None]

    def allows(self, ask: Ask, groups: Sequence[str] = ()) -> bool:
        for binding in self._bindings:
            place = binding["metadata"].get("namespace", "")
            is_wide = binding["kind"] == "ClusterRoleBinding"
            if not is_wide and (not ask.namespace or place != ask.namespace):
                continue
            if any(_is(subject, ask.user, groups) for subject in binding.get("subjects") or []):
                rules = self._rules(binding) or []
                if any(_covers(rule, ask) for rule in rules):
                    return True
        return False

    def _rules(self, binding: Object) -> list[Object] | None:
        ref = binding["roleRef"]
        place = binding["metadata"].get("namespace", "") if ref["kind"] == "Role" else ""
        return self._roles.get((ref["kind"], place, ref["name"]))


def _is(subject: Object, user: str, groups: Sequence[str]) -> bool:
    if subject["kind"] == "ServiceAccount":
        return user == f"{ACCOUNT}{subject['namespace']}:{subject['name']}"
    if subject["kind"] == "Group":
        return subject["name"] in groups
    return bool(subject["name"] == user)


def _covers(rule: Object, ask: Ask) -> bool:
    _, _, sub = ask.resource.partition("/")
    resources = {"*", ask.resource} | ({f"*/{sub}"} if sub else set())
    names = rule.get("resourceNames") or []
    return (
        bool({"*", ask.verb} & set(rule["verbs"]))
        and bool({"*", ask.group} & set(rule.get("apiGroups") or []))
        and bool(resources & set(rule.get("resources") or []))
        and (not names or ask.name in names)
    )
