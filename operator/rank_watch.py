"""Brings together what the ranks of all nodes say of one step, and compares them.

Reports of different nodes arrive apart, and some steps never whole (a reader that lagged makes
agents leave steps out), so what waits for the rest is bounded and the oldest goes first.
"""

from __future__ import annotations

from msgspec.structs import replace

from ..health.nodes.straggler import StragglerDetector
from ..health.numerics.cross_rank import RankPoint
from ..health.numerics.panel import Panel
from ..logbook.findings import Finding, Severity
from ..logbook.state import RunState
from ..logbook.wire import RankSample
from .agent.reports import RankSamples

PENDING_STEPS_MAX = 64


class RankWatch:
    """Cross-rank comparison of the current attempt. panel: holds the cross-rank detector."""

    def __init__(self, panel: Panel) -> None:
        self._panel = panel
        self._stragglers = StragglerDetector()
        self._attempt = 0
        self._judged_step = 0
        self._pending: dict[int, dict[int, tuple[RankSample, str]]] = {}

    def take(self, state: RunState, report: RankSamples) -> list[Finding]:
        """Take the samples of one node; return what steps that are whole now tell."""
        attempt = state.running(report.attempt)
        if attempt is None:
            return []
        if attempt.number != self._attempt:
            self._attempt, self._judged_step = attempt.number, 0
            self._pending.clear()
            self._stragglers.restarted()
        for sample in report.batch:
            if sample.step > self._judged_step:
                rows = self._pending.setdefault(sample.step, {})
                rows[sample.rank] = (sample, report.node)
        world_size = attempt.plan.mesh.world_size
        whole = [step for step in sorted(self._pending) if len(self._pending[step]) >= world_size]
        findings: list[Finding] = []
        for step in whole:
            findings += self._judge(state, step, self._pending.pop(step))
            self._judged_step = step
        self._forget()
        return findings

    def _forget(self) -> None:
        for step in sorted(self._pending):
            if step <= self._judged_step or len(self._pending) > PENDING_STEPS_MAX:
                del self._pending[step]

    def _judge(
        self, state: RunState, step: int, rows: dict[int, tuple[RankSample, str]]
    ) -> list[Finding]:
        compute_s = {rank: _compute_s(sample) for rank, (sample, _) in rows.items()}
        nodes = {rank: node for rank, (_, node) in rows.items()}
        found = self._stragglers.observe(step, compute_s, nodes)
        has_scaler = state.last is not None and state.last.loss_scale is not None
        if has_scaler and any(sample.found_inf for sample, _ in rows.values()):
            # Gradients overflow on one shard first: the scaler's business, and no rank's fault.
            return found
        points = [
            RankPoint(rank, sample.local_loss, sample.local_grad_norm, node)
            for rank, (sample, node) in rows.items()
        ]
        return found + [self._weighed(f) for f in self._panel.update_ranks(step, points)]

    def _weighed(self, finding: Finding) -> Finding:
        """Say what is asked for, unless the whole run is in trouble: that scatters its ranks.

        Suspected corruption costs the node its place. A warning has it tried out before it carries
        ranks again: its data may be unusual, and a preflight tells.
        """
        if finding.severity is Severity.OBSERVE or finding.shadow:
            return finding
        others = [
            seen
            for seen in self._panel.verdict.evidence
            if seen.detector != finding.detector and seen.severity is not Severity.OBSERVE
        ]
        if others or finding.node is None:
            return replace(finding, severity=Severity.OBSERVE)
        action = "evict" if finding.severity is Severity.ROLLBACK else "watch"
        return replace(finding, action=action)


def _compute_s(sample: RankSample) -> float:
    return sample.data_s + sample.forward_s + sample.backward_s + sample.optimizer_s
