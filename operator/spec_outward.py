"""The sections of the run spec that say what others are told of a run, and what GPU time costs."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from .spec_base import Seconds, Section

Topic = Literal[
    "opened", "answered", "recovered", "closed",
    "unsaved", "saved", "paused", "resumed", "ended",
]  # fmt: skip


class AccountingSpec(Section):
    """What GPU time costs. With nodes.gpu_watts, energy is reckoned from it."""

    gpu_idle_watts: float = Field(default=0.0, ge=0, le=10_000)
    """Power of one GPU that does nothing (about 60 for an A100); 0: not reckoned."""
    pue: float = Field(default=1.0, ge=1, le=5)
    """Power usage effectiveness of the data centre: what its meter shows over what machines use."""
    grid_g_per_kwh: float | None = Field(default=None, ge=0, le=2000)
    """Grams of CO2e per kWh of the grid (57 for BLOOM, 231 for OPT-175B); null: not reckoned."""
    embodied_g_per_gpu_hour: float = Field(default=0.0, ge=0, le=10_000)
    """Grams of CO2e that making the machines adds to each GPU-hour."""
    price_per_gpu_hour: float | None = Field(default=None, ge=0, le=10_000)
    """Money per GPU-hour; null: costs are not told in money."""
    currency: str = Field(default="USD", min_length=1, max_length=8, pattern=r"^[A-Za-z]+$")
    """What price_per_gpu_hour is in."""


class ObserveSpec(Section):
    """What the controller shows to monitoring."""

    metrics_port: int | None = Field(default=None, ge=0, le=65_535)
    """Serve Prometheus metrics at this port of the controller's node; 0: any free one, told in the
    controller's log; null: not at all. Whoever can reach the port can read."""
    metrics_host: str = Field(default="127.0.0.1", min_length=1, max_length=253)
    """Address to serve at; 0.0.0.0 for every interface."""


class SecretName(Section):
    """Where a secret is found on the controller's node. Never the secret itself."""

    env: str = Field(default="", max_length=256, pattern=r"^([A-Za-z_][A-Za-z0-9_]*)?$")
    """Name of an environment variable of the controller that holds it."""
    file: str = Field(default="", max_length=1024, validate_default=True)
    """Absolute path of a file that holds it; read anew each time, so it may be renewed."""

    @field_validator("file")
    @classmethod
    def _exactly_one(cls, file: str, info: ValidationInfo) -> str:
        if bool(file) == bool(info.data.get("env", "")):
            raise ValueError("give exactly one of env and file")
        if file and not file.startswith("/"):
            raise ValueError("must be an absolute path")
        return file


class NotifySpec(Section):
    """Whom the controller tells. URLs are secrets: they come from the environment or from files."""

    webhook: SecretName | None = None
    """URL that takes `{"text": ...}` by POST, as Slack, Mattermost and others do."""
    webhook_token: SecretName | None = None
    """Sent as a bearer token with each message, where the webhook wants one."""
    topics: tuple[Topic, ...] = (
        "opened", "answered", "closed", "unsaved", "saved", "paused", "resumed", "ended",
    )  # fmt: skip
    """What is told: an incident opened, answered (after it was only watched), recovered or closed;
    two saves in a row failed, and saved again; the run paused, resumed or ended."""
    heartbeat: SecretName | None = None
    """URL asked for as long as the controller turns: a dead-man switch that raises the alarm when
    nothing is heard any more."""
    heartbeat_every_s: Seconds = 60.0
    """How often."""
    timeout_s: float = Field(default=10.0, gt=0, le=120)
    """How long one request may take."""
    retry_max_s: Seconds = 300.0
    """Longest wait between two tries; a message is tried until it is taken or the run is gone."""
