"""The part of the run spec that says what node detectors may do."""

from __future__ import annotations

from ..health.numerics.config import Mode
from .spec_base import Section


class NodeDetectors(Section):
    """Mode of each node detector: act, shadow (findings are recorded, nothing follows) or off."""

    straggler: Mode = "act"
    """One rank that computes longer than the rest."""
    nvml: Mode = "act"
    """What GPUs and their driver report."""
    kernel_log: Mode = "act"
    """XIDs and other lines of the kernel log."""
    preflight: Mode = "act"
    """Checks before a node first carries ranks; off runs none."""
    failure_text: Mode = "act"
    """The last words of a dead worker; shadow is a cautious start with a trainer of your own."""
    cluster: Mode = "act"
    """What the cluster says of its nodes."""

    def mode_of(self, detector: str) -> Mode:
        """Return the mode of a node detector by the name under which its findings go."""
        mode: Mode = getattr(self, detector.replace("-", "_"))
        return mode
