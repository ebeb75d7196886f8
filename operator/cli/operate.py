"""midwatch operator: the Kubernetes operator, run by its Deployment."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ...health.nodes.evidence import DEFAULT_RULES
from ...logbook.errors import ConfigError

if TYPE_CHECKING:
    from ..k8s.service import Operator

_log = logging.getLogger(__name__)
OWN_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


def operator(
    namespace: Annotated[
        list[str] | None, typer.Option(help="Namespace to look after; may be given again.")
    ] = None,
    all_namespaces: Annotated[
        bool, typer.Option("--all-namespaces", help="Look after all of them.")
    ] = False,
    nodes: Annotated[
        bool, typer.Option("--nodes/--no-nodes", help="Read Node objects: signs, dead nodes.")
    ] = True,
    evidence: Annotated[
        Path | None, typer.Option(help="YAML table of what signs on nodes mean.")
    ] = None,
    lease_namespace: Annotated[
        str | None, typer.Option(help="Where the Lease lies; the operator's own namespace.")
    ] = None,
    lease_name: Annotated[str, typer.Option(help="Name of the Lease.")] = "midwatch-operator",
    probe_port: Annotated[
        int, typer.Option(help="Port of /healthz, /readyz and /metrics; 0: any.")
    ] = 8081,
) -> None:
    """Look after TrainingRun and Intervention objects; needs a service account or kubeconfig."""
    if all_namespaces and namespace:
        raise ConfigError("usage", "--namespace and --all-namespaces exclude each other.")
    logging.basicConfig(
        level=logging.INFO,
        stream=sys.stderr,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    for talkative in ("httpx", "kopf"):
        logging.getLogger(talkative).setLevel(logging.WARNING)
    from ..k8s.access import load_access
    from ..k8s.evidence_file import load_rules
    from ..k8s.service import Operator, Setting
    from ..k8s.world import Scope

    own, pod = _own_namespace(), os.environ.get("POD_NAME") or socket.gethostname()
    account = os.environ.get("POD_SERVICE_ACCOUNT") or "midwatch-operator"
    rules = load_rules(evidence) if evidence is not None else DEFAULT_RULES
    setting = Setting(
        identity=(own, pod),
        user=f"system:serviceaccount:{own}:{account}",
        scope=Scope(() if all_namespaces else tuple(namespace or [own]), nodes),
        lease=(lease_namespace or own, lease_name),
        probe_port=probe_port,
        rules=rules,
    )
    # A container that is started anew in the same pod is another holder.
    holder = f"{pod}_{uuid.uuid4().hex[:8]}"
    asyncio.run(_until_told(Operator(load_access(), setting, holder)))


async def _until_told(work: Operator) -> None:
    """Run until SIGTERM or SIGINT, which leave the Lease to the next one at once."""
    working = asyncio.create_task(work.run(), name="operator")
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, working.cancel)
    try:
        await working
    except asyncio.CancelledError:
        _log.info("told to end")


def _own_namespace() -> str:
    told = os.environ.get("POD_NAMESPACE")
    if told:
        return told
    try:
        return OWN_NAMESPACE.read_text(encoding="utf-8").strip()
    except OSError:
        return "default"
