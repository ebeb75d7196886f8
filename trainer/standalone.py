"""Training without a controller: a run spec, torchrun's environment, and the newest good state.

Under `torchrun --max-restarts` a failed job is started again and goes on from its newest
checkpoint. torchrun's agent serves one store for all restarts, so each restart's keys get a prefix
of their own: gloo would otherwise connect to the addresses of processes that are gone.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import yaml
from torch._C._distributed_c10d import Store

from ..checkpoints.manifest import MANIFEST_NAME, checkpoint_dir, parse_checkpoint_id
from ..logbook.decoding import prepared
from ..logbook.errors import ConfigError, MidwatchError
from ..logbook.wire import Mesh, WorkerStart
from .control import Mailbox
from .parts import Progress
from .rendezvous import Meeting, connect_store
from .report import PlainReport
from .worker import dump_stacks_on_signal, serve, validated


class MeshSection(msgspec.Struct, frozen=True):
    """The mesh of a run spec."""

    dp_shard: int
    tp: int = 1


class StandaloneSpec(msgspec.Struct, frozen=True):
    """What a run spec says to the trainer; the operator's sections are passed over."""

    name: str
    mesh: MeshSection
    trainer: dict[str, Any]
    run_dir: str = ""


class Situation(msgspec.Struct, frozen=True):
    """What rank 0 found in the run folder and told the others: alike on all ranks."""

    attempt: int
    checkpoints: tuple[str, ...]


def run(arguments: Sequence[str]) -> int:
    """Train the spec named on the command line. Returns: 0 ok, 2 usage; a failed rank exits 1."""
    parser = argparse.ArgumentParser(
        prog="midwatch.trainer.worker", description="Train a run spec without a controller."
    )
    parser.add_argument("spec", type=Path, help="run spec, YAML")
    options = parser.parse_args(arguments)
    dump_stacks_on_signal()
    try:
        spec = read_spec(options.spec)
        config = validated(spec.trainer)
        meeting = meeting_from_environment()
        store = connect_store(meeting)
        run_dir = Path(spec.run_dir or f"runs/{spec.name}")
        situation = agree_on_situation(run_dir, meeting.rank, store)
    except MidwatchError as error:
        print(f"midwatch.trainer.worker: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    start = WorkerStart(
        run=spec.name,
        run_dir=str(run_dir),
        attempt=situation.attempt,
        rank=meeting.rank,
        local_rank=int(os.environ.get("LOCAL_RANK", "0")),
        world_size=meeting.world_size,
        node=socket.gethostname(),
        mesh=Mesh(spec.mesh.dp_shard, spec.mesh.tp),
        rendezvous_host=meeting.host,
        rendezvous_port=meeting.port,
        trainer=spec.trainer,
        checkpoints=situation.checkpoints,
    )
    report = PlainReport(meeting.rank, config.steps)
    serve(start, store, report, Mailbox(None, 1, _no_agent), Progress(None))
    return 0


def read_spec(path: Path) -> StandaloneSpec:
    """Return the parts of a run spec the trainer needs.

    Raises: ConfigError[spec-missing], ConfigError[spec-invalid].
    """
    try:
        return msgspec.convert(yaml.safe_load(path.read_text("utf-8")), prepared(StandaloneSpec))
    except OSError as error:
        raise ConfigError(
            "spec-missing",
            f"the run spec {path} cannot be read: {error.strerror}.",
            remedy="Name an existing YAML file.",
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError, msgspec.ValidationError) as error:
        raise ConfigError(
            "spec-invalid",
            f"{path} is no run spec: {error}",
            remedy="It needs name, mesh (dp_shard, tp) and a trainer section.",
        ) from error


def meeting_from_environment() -> Meeting:
    """Return the meeting torchrun's environment describes; alone without torchrun.

    Raises: ConfigError[environment-incomplete].
    """
    if "WORLD_SIZE" not in os.environ:
        return Meeting("127.0.0.1", 0, rank=0, world_size=1, prefix="alone")
    try:
        return Meeting(
            host=os.environ["MASTER_ADDR"],
            port=int(os.environ["MASTER_PORT"]),
            rank=int(os.environ["RANK"]),
            world_size=int(os.environ["WORLD_SIZE"]),
            prefix=f"restart-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}",
            is_served=os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
        )
    except (KeyError, ValueError) as error:
        raise ConfigError(
            "environment-incomplete",
            f"WORLD_SIZE is set, but the rest of torchrun's environment is not: {error}.",
            remedy="Start with torchrun -m midwatch.trainer.worker SPEC.",
        ) from error


def agree_on_situation(run_dir: Path, rank: int, store: Store) -> Situation:
    """Return the attempt's number and candidate checkpoints as rank 0 sees them.

    Only rank 0 looks, since ranks that look at different moments may see different folders.
    """
    key = "midwatch/situation"
    if rank == 0:
        store.set(key, msgspec.json.encode(look_at(run_dir)).decode())
    return msgspec.json.decode(store.get(key), type=prepared(Situation))


def look_at(run_dir: Path) -> Situation:
    """Return every committed checkpoint, best first, and a number no earlier attempt has used.

    Best is the newest attempt's newest step: a later attempt's state is of the lineage that lives.
    """
    found: list[tuple[int, int, str]] = []
    used = [0]
    folder = run_dir / "checkpoints"
    for path in folder.iterdir() if folder.is_dir() else ():
        parsed = parse_checkpoint_id(path.name)
        if parsed is None:
            continue
        step, attempt = parsed
        used.append(attempt)
        if (checkpoint_dir(run_dir, path.name) / MANIFEST_NAME).is_file():
            found.append((attempt, step, path.name))
    return Situation(max(used) + 1, tuple(name for _, _, name in sorted(found, reverse=True)))


def _no_agent() -> None:
    """Nobody can be gone who never was there."""
