"""The sections of the run spec that say where the state of a run is kept, how often, how long."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from ..checkpoints.objects import check_endpoint, check_url
from ..logbook.errors import ConfigError
from .spec_base import Seconds, Section, at_least


class MemorySpec(Section):
    """The memory tier: every rank's state in its node's memory, and a copy on the next node."""

    mode: Literal["auto", "off"] = "auto"
    """auto: kept wherever the node has the memory for it; off: never."""
    every_steps: int | None = Field(default=None, ge=1, le=100_000)
    """Steps from one copy to the next; null: as often as cost_frac allows, by measured cost."""
    cost_frac: float = Field(default=0.01, gt=0, le=1)
    """Share of the training time that copying may cost when every_steps is null."""
    host_frac: float = Field(default=0.5, gt=0, le=0.95)
    """Share of the memory free on a node, when its agent starts, that the tier may take."""


class StoreSpec(Section):
    """The durable store: any S3-compatible service, or a path that all nodes share."""

    url: str = Field(default="", max_length=1024)
    """s3://BUCKET/PREFIX or an absolute path; empty keeps checkpoints in the run folder alone.
    With a store, ranks write to local_dir and agents upload in the background."""
    local_dir: str = Field(default="", max_length=1024)
    """Folder on each node's own disk for what is not uploaded yet; empty: RUN_DIR/local."""
    endpoint_url: str | None = None
    """Of an S3-compatible service that is not AWS, e.g. https://minio.example:9000."""
    region: str | None = None
    """Region of the bucket; null leaves it to the standard configuration chain."""
    path_style: bool = False
    """Address buckets as ENDPOINT/BUCKET instead of BUCKET.ENDPOINT."""
    ca_bundle: str | None = None
    """File of certificates to trust for endpoint_url; null trusts the system's."""
    part_mib: int = Field(default=16, ge=5, le=5_120)
    """Size of a part of an upload or a download, MiB."""
    concurrency: int = Field(default=4, ge=1, le=64)
    """Parts in flight at once on each node."""
    bandwidth_mib_s: float | None = Field(default=None, gt=0)
    """Most that one node's uploads may take, MiB/s; null: no limit."""
    timeout_s: Seconds = 60.0
    """How long one request may take without an answer."""
    retry_max_s: Seconds = 60.0
    """Longest wait between two tries of an upload; they go on for as long as the run lives."""
    finish_wait_s: float = Field(default=600.0, ge=0, le=86_400)
    """How long a run that has ended waits for its last checkpoint to be in the store."""

    @field_validator("url")
    @classmethod
    def _url_names_a_store(cls, url: str) -> str:
        if url:
            try:
                check_url(url)
            except ConfigError as error:
                raise ValueError(str(error)) from error
        return url.rstrip("/")

    @field_validator("endpoint_url")
    @classmethod
    def _endpoint_is_an_address(cls, endpoint: str | None) -> str | None:
        if endpoint is not None:
            try:
                check_endpoint(endpoint)
            except ConfigError as error:
                raise ValueError(str(error)) from error
        return endpoint


class IntervalSpec(Section):
    """How often the state is saved to disk. Bounds turn the choice over to Midwatch."""

    min_steps: int | None = Field(default=None, ge=1, le=1_000_000)
    """Smallest interval that may be chosen; null (with max_steps) leaves the trainer's own."""
    max_steps: int | None = Field(default=None, ge=1, le=1_000_000, validate_default=True)
    """Largest interval that may be chosen. Between the bounds the interval that loses least time
    to saves and failures is kept, by the save cost and failure rate of the run itself."""
    prior_mtbf_hours: float = Field(default=24.0, gt=0, le=100_000)
    """Mean time between failures of the whole run assumed until it has shown its own; weighs as
    much as one failure."""

    @field_validator("max_steps")
    @classmethod
    def _both_or_neither(cls, max_steps: int | None, info: ValidationInfo) -> int | None:
        if (max_steps is None) != (info.data.get("min_steps") is None):
            raise ValueError("give min_steps and max_steps together, or neither")
        if max_steps is not None:
            at_least("min_steps", max_steps, info)
        return max_steps

    @property
    def is_chosen(self) -> bool:
        """Whether Midwatch chooses the interval."""
        return self.min_steps is not None


class CheckpointsSpec(Section):
    """Where the state of the run is kept: memory, each node's disk, and a durable store."""

    memory: MemorySpec = MemorySpec()
    store: StoreSpec = StoreSpec()
    interval: IntervalSpec = IntervalSpec()


class Retention(Section):
    """Which checkpoints are kept. last_good and the newest verified one always are."""

    keep_newest: int = Field(default=4, ge=1, le=1000)
    """Newest checkpoints kept."""
    keep_every_steps: int = Field(default=0, ge=0)
    """Also keep one checkpoint for each such stretch of steps; 0 keeps none."""
    max_age_hours: float | None = Field(default=None, gt=0)
    """Delete what is older, milestones of keep_every_steps included; null: age does not matter.
    Pinned ones stay, and a few far back to which a creep that is named late would go."""
    keep_local: int = Field(default=2, ge=1, le=1000)
    """With a store: newest uploaded checkpoints of which each node keeps its part on its disk."""
