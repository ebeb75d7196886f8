"""The state of a run as Prometheus metrics: a pure function from state to exposition text.

Nothing is counted beside the fold, so a controller that is replaced goes on with the same numbers,
and a run that is gone takes its series with it. Labels are few and bounded: never a node, a rank or
a checkpoint. Base units and `_total` as Prometheus has them; moments as timestamps, not ages.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from .costs import measured_j, num_ranks
from .state import RunState, Status
from .summary import RunSummary, summarize

PREFIX = "midwatch_"


class StateCollector(Collector):
    """Gives a registry the metrics of whatever state there is when it is asked."""

    def __init__(self, state_of: Callable[[], RunState], now_s: Callable[[], float]) -> None:
        self._state_of = state_of
        self._now_s = now_s

    def collect(self) -> Iterator[Metric]:
        yield from collect(self._state_of(), self._now_s())


def exposition(state: RunState, now_s: float) -> str:
    """Return the metrics of a run in the text format of Prometheus."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(StateCollector(lambda: state, lambda: now_s))
    return generate_latest(registry).decode()


def collect(state: RunState, now_s: float) -> Iterator[Metric]:
    """Yield the metrics of a run; none before it was submitted."""
    if not state.run:
        return
    summary = summarize(state, now_s)
    for name, text, value in _gauges(state, summary):
        if value is not None:
            yield _gauge(state.run, name, text, float(value))
    for name, text, count in _counters(state, summary):
        family = CounterMetricFamily(PREFIX + name, text, labels=["run"])
        family.add_metric([state.run], float(count))
        yield family
    yield from _labelled(state)


_Figures = Iterator[tuple[str, str, float | None]]


def _gauges(state: RunState, summary: RunSummary) -> _Figures:
    last = state.last
    if last is not None:
        yield "loss", "Training loss of the last step, nats per token.", last.loss
        yield "grad_norm", "Gradient norm of the last step, before clipping.", last.grad_norm
        yield "activation_norm", "Activation norm of the last step.", last.activation_norm
        yield "learning_rate", "Learning rate the last step ran at.", last.lr
        yield "loss_scale", "Loss scale of the last step (fp16).", last.loss_scale
        yield "step_seconds", "Time of the last step.", last.step_s
        yield "tokens_per_second", "Throughput of the last step.", last.tokens_per_s
        yield "model_tflops_per_device", "Model FLOP/s of a device.", last.model_tflops_per_device
        yield "last_step_timestamp_seconds", "When the last step was completed.", last.time_s
    measured = state.validation
    if measured is not None:
        yield "validation_loss", "Loss on held-out text, nats per token.", measured.loss
        yield "validation_perplexity", "Perplexity on held-out text.", measured.perplexity
        yield "validation_step", "Step of the newest such measurement.", measured.step
        yield "validation_seconds", "How long training waited for it.", measured.spent_s
    factor = state.hyper.factor_at(state.step + 1)
    yield "learning_rate_factor", "What the LR schedule is multiplied by.", factor
    yield "step", "Newest completed step of the lineage.", state.step
    yield "attempt", "Number of the newest attempt.", state.num_attempts
    yield "ranks", "Ranks of the run.", num_ranks(state)
    yield "ettr_ratio", "Productive time over wall time since submission.", summary.ettr_frac
    yield "wall_seconds", "Time since submission.", summary.wall_s
    yield "productive_seconds", "Surviving steps at their median time.", summary.productive_s
    yield "mean_time_to_recover_seconds", "First sign to first new step.", summary.mttr_s
    yield "mean_time_between_failures_seconds", "Wall time over restarts.", summary.mtbf_s
    yield "submitted_timestamp_seconds", "When the run was submitted.", state.submitted_s
    yield "journal_timestamp_seconds", "When the newest event was recorded.", state.time_s
    yield "journal_seq", "Sequence number of the newest event.", state.seq
    yield "open_incidents", "Incidents that are not closed.", len(state.open_incidents)
    yield "upload_trouble_nodes", "Nodes whose uploads do not get on.", len(state.upload_trouble)
    yield from _checkpoint_gauges(state)


def _checkpoint_gauges(state: RunState) -> _Figures:
    standing = [c for c in state.checkpoints.values() if not c.abandoned]
    if not standing:
        return
    newest = max(standing, key=lambda c: c.step)
    yield "checkpoint_step", "Step of the newest checkpoint.", newest.step
    yield "checkpoint_timestamp_seconds", "When it was committed.", newest.time_s
    yield "checkpoint_save_seconds", "How long it took to save.", newest.save_s
    yield "checkpoint_blocked_seconds", "How long the loop stood still for it.", newest.blocked_s
    yield "checkpoint_bytes", "Its size.", newest.bytes
    sound = [c.step for c in standing if c.verified and not c.quarantined]
    if sound:
        yield "verified_checkpoint_step", "Step of the newest one read back whole.", max(sound)


def _counters(state: RunState, summary: RunSummary) -> Iterator[tuple[str, str, float]]:
    yield "steps_trained", "Steps of all attempts together.", summary.steps_trained
    yield "steps_lost", "Steps that had to be trained again.", summary.steps_lost
    yield "restarts", "Attempts after the first.", max(state.num_attempts - 1, 0)
    yield "decisions", "Decisions made.", state.num_decisions
    yield "findings", "Findings of detectors.", state.num_findings
    yield "interventions", "Changes asked for by people and policy.", len(state.interventions)
    yield "failed_saves", "Checkpoints that were not saved.", state.failed_saves
    yield "stale_reports", "Reports of older attempts that were ignored.", state.num_stale
    joules = measured_j(state)
    if joules is not None:
        yield "energy_joules", "Energy measured by the GPUs.", joules


def _labelled(state: RunState) -> Iterator[Metric]:
    status = GaugeMetricFamily(PREFIX + "status", "1 for what the run is.", labels=["run", "is"])
    for each in Status:
        status.add_metric([state.run, each.value], float(state.status is each))
    yield status
    by_fault = Counter(i.draft.fault for i in state.incidents.values())
    incidents = CounterMetricFamily(
        PREFIX + "incidents", "Incidents by fault.", labels=["run", "fault"]
    )
    for fault, count in sorted(by_fault.items()):
        incidents.add_metric([state.run, fault], float(count))
    yield incidents
    kinds = Counter(
        "quarantined" if n.quarantined else "present" if n.present else "gone"
        for n in state.nodes.values()
    )
    nodes = GaugeMetricFamily(PREFIX + "nodes", "Nodes by what they are.", labels=["run", "are"])
    for kind in ("present", "quarantined", "gone"):
        nodes.add_metric([state.run, kind], float(kinds[kind]))
    yield nodes


def _gauge(run: str, name: str, text: str, value: float) -> Metric:
    family = GaugeMetricFamily(PREFIX + name, text, labels=["run"])
    family.add_metric([run], value)
    return family
