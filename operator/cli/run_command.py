"""midwatch run: put a run on Ray, watch it to its end, and sum it up."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from ...logbook.decisions import ON_REQUEST, PruneCheckpoints, VerifyCheckpoint
from ...logbook.errors import ConfigError, Fatal
from ...logbook.events import DecisionMade, Event
from ...logbook.live_view import render_live, render_summary
from ...logbook.record import Record
from ...logbook.render_text import line_of
from ...logbook.state import RunState, Status
from ...logbook.summary import summarize
from ..desk import note_path, post_request
from ..faults import Injector, load_faults
from ..runtime.local_ray import is_local, set_local_environment
from ..secret_value import require_secrets
from ..spec import RunSpec
from ..spec_file import load_object, load_spec
from .output import FAILED, OK, Output, OutputOption, console, err_console, print_json
from .runs import StateFollower, run_dir_of
from .steer import make_request

if TYPE_CHECKING:
    from ..runtime.session import Session

SAMPLES = Path(__file__).resolve().parents[2] / "manifests" / "runs"
FRAME_S = 0.1
PLAIN_KINDS = frozenset(
    {"decision", "finding", "fault-injected", "node-lost", "controller-started"}
)


def run(
    spec_path: Annotated[
        Path | None, typer.Argument(metavar="SPEC", help="Run spec, YAML.")
    ] = None,
    demo: Annotated[bool, typer.Option("--demo", help="The sample run with its faults.")] = False,
    faults: Annotated[Path | None, typer.Option(help="Fault plan to strike with, YAML.")] = None,
    compare: Annotated[
        bool, typer.Option(help="Train once more without faults and compare the loss.")
    ] = False,
    address: Annotated[
        str | None, typer.Option(help="Ray cluster to join; RAY_ADDRESS, else a local one.")
    ] = None,
    detach: Annotated[bool, typer.Option(help="Leave once it is on the cluster.")] = False,
    output: OutputOption = Output.TEXT,
) -> None:
    """Train under the controller and watch; Ctrl-C saves and stops."""
    if demo:
        spec_path, compare = spec_path or SAMPLES / "demo.yaml", True
        faults = faults or SAMPLES / "demo-faults.yaml"
    if spec_path is None:
        raise ConfigError("usage", "name a run spec.", remedy="`midwatch run --demo` has its own.")
    spec = _resolved(load_spec(spec_path))
    plan = load_faults(faults) if faults is not None else None
    _prepare(spec)
    load_object(spec.entry_points.check)(spec.trainer)
    run_dir = run_dir_of(spec)
    injector = Injector(run_dir, plan) if plan is not None else None
    if is_local(address):
        # The controller will run here: what it cannot find, nobody would miss until the night.
        require_secrets(spec.notify, spec.api)
        set_local_environment()
    # Only now: ray reads the environment when it is imported.
    from ..runtime.session import ray_session, submit, tear_down

    with _ray_talking_to(run_dir / "logs" / "ray.log"), ray_session(address) as session:
        undisturbed = _undisturbed(spec, session) if compare else None
        if detach and not session.is_local:
            submit(spec, run_dir, session)
            console.print(f"{spec.name} is on the cluster; its folder is {run_dir}")
            return
        state = _supervise(spec, run_dir, session, injector)
        tear_down(spec)
    _sum_up(state, run_dir, undisturbed, output)
    raise SystemExit(OK if state.status is Status.COMPLETED else FAILED)


def _resolved(spec: RunSpec) -> RunSpec:
    """The spec with its folders absolute: workers do not share this process's folder."""
    trainer = dict(spec.trainer)
    data = trainer.get("data")
    if isinstance(data, dict) and isinstance(data.get("dir"), str):
        trainer["data"] = {**data, "dir": str(Path(data["dir"]).absolute())}
    return spec.model_copy(update={"trainer": trainer, "run_dir": str(run_dir_of(spec))})


@contextlib.contextmanager
def _ray_talking_to(path: Path) -> Iterator[None]:
    """Ray prints what it makes of dying workers; here they are expected, and told better."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        yield


def _prepare(spec: RunSpec) -> None:
    if not spec.prepare:
        return
    command = [sys.executable if word == "python" else word for word in spec.prepare]
    err_console.print(f"preparing: {' '.join(spec.prepare)}")
    try:
        done = subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
    except OSError as error:
        raise ConfigError("prepare-failed", f"cannot start {command[0]}: {error}.") from error
    if done.returncode:
        raise ConfigError(
            "prepare-failed",
            f"`{' '.join(spec.prepare)}` ended with status {done.returncode}.",
            remedy="Its own message stands above.",
        )


def _undisturbed(spec: RunSpec, session: Session) -> RunState:
    """Train the same spec with no faults, in a folder of its own."""
    from ..runtime.session import tear_down

    name = f"{spec.name[:50]}-undisturbed"
    folder = run_dir_of(spec).with_name(name)
    # The same nodes are tried out by the run itself; once is enough.
    nodes = spec.nodes.model_copy(update={"preflight": "off"})
    quiet = spec.model_copy(update={"name": name, "run_dir": str(folder), "nodes": nodes})
    state = _supervise(quiet, folder, session, None)
    tear_down(quiet)
    return state


def _supervise(
    spec: RunSpec, run_dir: Path, session: Session, injector: Injector | None
) -> RunState:
    from ..runtime.session import submit

    if (run_dir / "journal").is_dir():
        _refuse_finished(run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    submit(spec, run_dir, session)
    follower = StateFollower(run_dir)
    total = int(spec.trainer.get("steps", 0))
    watch = _watch_live if console.is_terminal else _watch_plain
    try:
        watch(follower, total, injector)
    except KeyboardInterrupt:
        err_console.print("stopping: finishing the step and saving (Ctrl-C again to leave at once)")
        request = make_request("stop", "interrupted from the keyboard")
        post_request(run_dir, request, time_s=time.time())
        watch(follower, total, None)
    return follower.state


def _refuse_finished(run_dir: Path) -> None:
    follower = StateFollower(run_dir)
    follower.poll()
    if follower.state.status is Status.COMPLETED:
        raise ConfigError(
            "run-exists",
            f"{run_dir} holds a completed run.",
            remedy="Remove the folder, or give the run another name or run_dir.",
        )


def _watch_live(follower: StateFollower, total: int, injector: Injector | None) -> None:
    def picture() -> RenderableType:
        view = render_live(follower.state, total, time.time(), follower.alive_s)
        return view if injector is None else Group(view, Text(injector.next_text, style="dim"))

    screen = Live(
        picture(), console=console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False
    )
    with screen as live:
        _follow(follower, injector, lambda _: live.update(picture(), refresh=True))


def _watch_plain(follower: StateFollower, total: int, injector: Injector | None) -> None:
    told = 0

    def tell(new: list[Record[Event]]) -> None:
        nonlocal told
        state = follower.state
        for record in new:
            if record.kind in PLAIN_KINDS and not _is_upkeep(record.event):
                _say(line_of(record))
        last = state.last
        if last is not None and state.step // 25 != told // 25:
            scale = "-" if last.loss_scale is None else f"{last.loss_scale:g}"
            _say(
                f"step {state.step}/{total} loss {last.loss:.4f} lr {last.lr:.3g} scale {scale} "
                f"grad {last.grad_norm:.3g} {last.tokens_per_s:,.0f} tokens/s "
                f"attempt {state.num_attempts} {state.status}"
            )
            told = state.step

    _follow(follower, injector, tell)


def _is_upkeep(event: Event) -> bool:
    upkeep = (VerifyCheckpoint, PruneCheckpoints)
    return isinstance(event, DecisionMade) and isinstance(event.decision.action, upkeep)


def _say(line: str) -> None:
    console.print(line, soft_wrap=True, markup=False, highlight=False)


def _follow(
    follower: StateFollower,
    injector: Injector | None,
    show: Callable[[list[Record[Event]]], None],
) -> None:
    while True:
        new = follower.poll()
        if injector is not None:
            injector.strike(follower.state)
        show(new)
        # Who has asked for a pause will ask for it to go on, and this holds what it goes on with.
        if follower.state.is_at_rest and follower.state.paused != ON_REQUEST:
            return
        time.sleep(FRAME_S)


def _sum_up(state: RunState, run_dir: Path, undisturbed: RunState | None, output: Output) -> None:
    summary = summarize(state, time.time())
    against = undisturbed.last.loss if undisturbed is not None and undisturbed.last else None
    notes = {row.id: str(note_path(run_dir, row.id)) for row in summary.incidents}
    if output is Output.JSON:
        print_json({"summary": summary, "undisturbed_loss": against, "notes": notes})
        return
    extra = []
    if against is not None and summary.loss is not None:
        gap = summary.loss - against
        extra = [("undisturbed loss", f"{against:.4f} (this run {gap:+.4f})")]
    console.print(render_summary(summary, extra))
    console.print()
    for row in summary.incidents:
        console.print(f"{row.id}: {row.title}; {row.outcome}", soft_wrap=True, highlight=False)
        console.print(f"    note: {notes[row.id]}", soft_wrap=True, highlight=False)
    console.print(f"run folder: {run_dir}", soft_wrap=True, highlight=False)
    if state.status is Status.PAUSED:
        raise Fatal(
            "run-paused",
            f"the run is paused: {state.pause_reason}.",
            remedy="Mend what its last note tells of; the same command again sets it going.",
        )
