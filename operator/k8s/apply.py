"""Carry out what reconcile() decided: one action after another, each failure its own.

What failed is decided anew at the next look; nothing here is remembered that could not be lost,
but for when things were written last, so that they are not written too often.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar

import msgspec

from ...logbook.errors import Fatal, MidwatchError, Retryable
from . import actions as act
from . import names
from .client import CLUSTERS, INTERVENTIONS, KINDS, NODES, PODS, RUNS, SECRETS, Kube
from .intervention_status import laid, previewed, refused
from .look import Lookout
from .observed import Failure, Object, Observed
from .run_api import Refused, lay_request, start_job, stop_job
from .tell import Teller

_log = logging.getLogger(__name__)
STATUS_EVERY_S = 10.0
REAPPLY_S = 300.0
"""An object that is as it was applied last is applied again after this, against drift."""


class Outcome(msgspec.Struct, frozen=True):
    """What came of the actions of one look. again_s: when to look again at the latest.

    run, cluster: the TrainingRun and the RayCluster as they were written, None where they were not.
    """

    again_s: float | None = None
    run: Object | None = None
    cluster: Object | None = None
    failed: tuple[Failure, ...] = ()


class _Turn:
    """What comes of the actions of one look, while they are carried out. soon: see Outcome."""

    def __init__(self, observed: Observed) -> None:
        self.observed = observed
        self.again_s: float | None = None
        self.run: Object | None = None
        self.cluster: Object | None = None
        self.failed: list[Failure] = []

    def soon(self, delay_s: float) -> None:
        """Have the run looked at again after this at the latest."""
        self.again_s = delay_s if self.again_s is None else min(self.again_s, delay_s)


class Applier:
    """Carries out actions for all runs, whose turns are under way at the same time."""

    def __init__(
        self,
        kube: Kube,
        lookout: Lookout,
        teller: Teller,
        status_every_s: float = STATUS_EVERY_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._status_every_s = status_every_s
        self._kube, self._lookout, self._teller, self._clock = kube, lookout, teller, clock
        self._applied: dict[tuple[str, str, str], tuple[str, float]] = {}
        self._status_s: dict[str, float] = {}

    async def carry_out(self, actions: list[act.Action], observed: Observed) -> Outcome:
        """Carry out actions in their order. Raises: Fatal[lease-lost]."""
        turn = _Turn(observed)
        is_placed = True
        for action in actions:
            if isinstance(action, act.RemovePod) and not is_placed:
                # Its node may not be excluded yet: the pod would come back to it.
                continue
            try:
                await self._do(action, turn)
            except MidwatchError as error:
                if error.code == "lease-lost":
                    raise
                turn.failed.append(_failure(action, error))
                is_placed = is_placed and not isinstance(action, act.ApplyObject)
                _log.warning("%s: %s: %s", observed.name, type(action).__name__, error)
                turn.soon(error.delay_s if isinstance(error, Retryable) else STATUS_EVERY_S)
        return Outcome(turn.again_s, turn.run, turn.cluster, tuple(turn.failed))

    def forget(self, uid: str) -> None:
        """Forget a run that is gone."""
        self._status_s.pop(uid, None)

    async def _do(self, action: act.Action, turn: _Turn) -> None:
        doing: Callable[[Any, _Turn], Awaitable[None]] = self._HOW[type(action)].__get__(self)
        await doing(action, turn)

    async def _set_finalizer(self, action: act.SetFinalizer, turn: _Turn) -> None:
        meta = turn.observed.run["metadata"]
        others = [each for each in meta.get("finalizers") or () if each != names.FINALIZER]
        wanted = [*others, names.FINALIZER] if action.present else others
        patch = {
            "metadata": {
                "finalizers": wanted,
                "resourceVersion": meta.get("resourceVersion"),
                "uid": meta["uid"],
            }
        }
        turn.run = await self._kube.merge(RUNS, turn.observed.namespace, turn.observed.name, patch)
        turn.soon(0.0)

    async def _apply_object(self, action: act.ApplyObject, turn: _Turn) -> None:
        body, meta = action.body, action.body["metadata"]
        key = body["kind"], meta["namespace"], meta["name"]
        digest = hashlib.sha256(msgspec.json.encode(body, order="deterministic")).hexdigest()
        known = self._applied.get(key)
        is_fresh = known is not None and self._clock() < known[1] + REAPPLY_S
        if action.is_there and is_fresh and known is not None and known[0] == digest:
            return
        kind = KINDS[body["apiVersion"], body["kind"]]
        written = await self._kube.apply(kind, body)
        if kind is CLUSTERS:
            turn.cluster = written
        self._applied[key] = digest, self._clock()

    async def _make_token(self, action: act.MakeToken, turn: _Turn) -> None:
        token = base64.b64encode(secrets.token_urlsafe(32).encode("ascii")).decode("ascii")
        try:
            await self._kube.create(SECRETS, {**action.body, "data": {names.TOKEN_KEY: token}})
        except Retryable as error:
            if error.code != "kube-conflict":
                raise
            # Of an older run of this name, whose garbage is about to be collected.
            turn.soon(1.0)
            return
        turn.soon(0.0)

    async def _remove_cluster(self, action: act.RemoveCluster, turn: _Turn) -> None:
        await self._kube.delete(CLUSTERS, turn.observed.namespace, action.name, action.uid)

    async def _remove_pod(self, action: act.RemovePod, turn: _Turn) -> None:
        await self._kube.delete(
            PODS, turn.observed.namespace, action.name, action.uid, is_forced=action.is_forced
        )
        how = "forcibly, its node is gone" if action.is_forced else "another is to take its place"
        await self._teller.tell(
            act.Tell("PodRemoved", f"pod {action.name} is removed: {how}"), turn.observed.run
        )

    async def _cordon(self, action: act.Cordon, turn: _Turn) -> None:
        patch = {
            "metadata": {"annotations": {names.CORDONED_BY: action.by if action.is_on else None}},
            "spec": {"unschedulable": action.is_on},
        }
        await self._kube.merge(NODES, None, action.node, patch)

    async def _start_controller(self, action: act.StartController, turn: _Turn) -> None:
        assert turn.observed.cluster is not None
        self._kube.guard()
        remote = await self._lookout.jobs_remote(turn.observed.namespace, turn.observed.cluster)
        env = dict(action.env)
        if action.brings_tokens:
            env |= await self._lookout.api_tokens(turn.observed.run)
        await start_job(remote, action, env)
        told = act.Tell("ControllerStarted", f"Ray job {action.id} puts the controller there")
        await self._teller.tell(told, turn.observed.run)

    async def _stop_controller(self, action: act.StopController, turn: _Turn) -> None:
        assert turn.observed.cluster is not None
        self._kube.guard()
        await stop_job(
            await self._lookout.jobs_remote(turn.observed.namespace, turn.observed.cluster),
            action.id,
        )

    async def _ask(self, action: act.Ask, turn: _Turn) -> None:
        self._kube.guard()
        remote = await self._lookout.run_remote(turn.observed.run)
        about = next(
            (i for i in turn.observed.interventions if i["metadata"]["name"] == action.for_object),
            None,
        )
        try:
            answer = await lay_request(remote, action.request, is_dry_run=action.is_dry_run)
        except Refused as error:
            if about is None or error.status in (401, 403):
                raise
            if error.told == "intervention-id-taken":
                # Nobody else has this object's uid: it lies there already.
                await self._note_laid(about, turn)
                return
            said = refused(about, error.told or "refused", error.message, turn.observed.now_s)
            await self._write_intervention(said.name, said.status, turn)
            return
        if action.is_dry_run and about is not None:
            said = previewed(about, _foretold(answer), turn.observed.now_s)
            await self._write_intervention(said.name, said.status, turn)
        elif about is not None:
            await self._note_laid(about, turn)
        turn.soon(1.0)

    async def _note_laid(self, about: Object, turn: _Turn) -> None:
        """Have the object itself say that the run has its request, which the run may tell late."""
        said = laid(about, turn.observed.now_s)
        await self._write_intervention(said.name, said.status, turn)

    async def _set_run_status(self, action: act.SetRunStatus, turn: _Turn) -> None:
        if _without_times(action.status) == _without_times(turn.observed.status):
            return
        last_s = self._status_s.get(turn.observed.uid)
        if last_s is not None and self._clock() < last_s + self._status_every_s:
            turn.soon(last_s + self._status_every_s - self._clock())
            return
        body = {
            "apiVersion": names.API_VERSION,
            "kind": names.TRAINING_RUN,
            "metadata": {
                "name": turn.observed.name,
                "namespace": turn.observed.namespace,
                "uid": turn.observed.uid,
            },
            "status": action.status,
        }
        turn.run = await self._kube.apply(RUNS, body, names.STATUS_MANAGER, "status")
        self._status_s[turn.observed.uid] = self._clock()
        for told in action.tells:
            await self._teller.tell(told, turn.observed.run)

    async def _set_intervention(self, action: act.SetInterventionStatus, turn: _Turn) -> None:
        await self._write_intervention(action.name, action.status, turn)

    async def _write_intervention(self, name: str, status: Object, turn: _Turn) -> None:
        body = {
            "apiVersion": names.API_VERSION,
            "kind": names.INTERVENTION,
            "metadata": {"name": name, "namespace": turn.observed.namespace},
            "status": status,
        }
        await self._kube.apply(INTERVENTIONS, body, names.STATUS_MANAGER, "status")

    async def _label(self, action: act.LabelIntervention, turn: _Turn) -> None:
        patch = {"metadata": {"labels": action.labels}}
        await self._kube.merge(INTERVENTIONS, turn.observed.namespace, action.name, patch)

    async def _create_intervention(self, action: act.CreateIntervention, turn: _Turn) -> None:
        try:
            await self._kube.create(INTERVENTIONS, action.body)
        except Retryable as error:
            if error.code != "kube-conflict":
                raise

    async def _remove_intervention(self, action: act.RemoveIntervention, turn: _Turn) -> None:
        await self._kube.delete(INTERVENTIONS, turn.observed.namespace, action.name, action.uid)

    async def _tell(self, action: act.Tell, turn: _Turn) -> None:
        await self._teller.tell(action, turn.observed.run)

    _HOW: ClassVar[dict[type, Callable[..., Awaitable[None]]]] = {
        act.SetFinalizer: _set_finalizer,
        act.ApplyObject: _apply_object,
        act.MakeToken: _make_token,
        act.RemoveCluster: _remove_cluster,
        act.RemovePod: _remove_pod,
        act.Cordon: _cordon,
        act.StartController: _start_controller,
        act.StopController: _stop_controller,
        act.Ask: _ask,
        act.SetRunStatus: _set_run_status,
        act.SetInterventionStatus: _set_intervention,
        act.LabelIntervention: _label,
        act.CreateIntervention: _create_intervention,
        act.RemoveIntervention: _remove_intervention,
        act.Tell: _tell,
    }


def _failure(action: act.Action, error: MidwatchError) -> Failure:
    return Failure(
        type(action).__name__, error.code, error.message, is_final=isinstance(error, Fatal)
    )


def _foretold(answer: Any) -> str:
    """Return what a dry run answered, for a person: each decision's action and reason."""
    decisions = answer if isinstance(answer, list) else []
    told = [f"{(d.get('action') or {}).get('type', '')}: {d.get('reason', '')}" for d in decisions]
    return "; ".join(told)[:1000] or "it would have to wait"


def _without_times(status: Object) -> Object:
    """A status but for the time at which it was told, which alone is no news."""
    run = {key: value for key, value in (status.get("run") or {}).items() if key != "updatedAt"}
    return {**status, "run": run}
