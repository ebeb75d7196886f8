"""Failure models as data: what fails, how often, and who says so.

Rates are per GPU-hour of the run, so one model holds at every size. A source that publishes only a
total is split by the causes of Llama 3's Table 5, which is the one full table there is.
"""

from __future__ import annotations

import math
from pathlib import Path

import msgspec

from ...logbook.decoding import prepared
from ...logbook.errors import ConfigError

HOUR_S = 3600.0

GPU, SOFTWARE, HOST, NETWORK, HANG = "gpu", "software", "host", "network", "hang"
CORRUPTION, SSD = "corruption", "ssd"
KILL = "kill"
EFFECT_NAMES = (KILL, GPU, SOFTWARE, HOST, NETWORK, HANG, CORRUPTION, SSD)


class Cause(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One cause. effect: what it does to the world, a name in strikes.EFFECTS."""

    name: str
    effect: str
    per_gpu_hour: float


class FailureModel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What fails in a cluster, and how.

    causes: rates as they were observed, with everything that fails one machine in them.
    own_frac: share of the observed that is drawn machine by machine; the rest are machines of a
    group and new ones that fail at once, which are drawn besides.
    per_hour_groups: events per hour that take several hosts at once, up to group_max of them, as
        counted on groups_gpus GPUs, with whose number they grow; 0: the same on any number.
    per_hour_outages: events per hour that take the whole cluster, for outage_hours.
    per_hour_store: outages of the checkpoint store per hour, for store_minutes.
    per_gpu_hour_slow: nodes that become slow, by slow_factor.
    infant_frac: share of new or mended machines that fail within the first ten minutes.
    lemon_frac: share of machines that fail lemon_multiple times as often as the others.
    divergences_per_1000_steps: stretches in which the scheduled rate is more than the run bears.
    """

    name: str
    source: str
    causes: tuple[Cause, ...]
    own_frac: float = 1.0
    per_hour_groups: float = 0.0
    groups_gpus: int = 0
    group_max: int = 5
    per_hour_outages: float = 0.0
    outage_hours: float = 36.0
    per_hour_store: float = 0.0
    store_minutes: float = 20.0
    per_gpu_hour_slow: float = 0.0
    slow_factor: float = 1.5
    infant_frac: float = 0.0
    lemon_frac: float = 0.0
    lemon_multiple: float = 1.0
    divergences_per_1000_steps: float = 0.0

    @property
    def group_mean(self) -> float:
        """Hosts that a group takes in the mean."""
        return (2 + max(self.group_max, 2)) / 2

    @property
    def drawn_frac(self) -> float:
        """What each sound machine's rate is of the observed one, lemons and the rest taken off."""
        return self.own_frac / (1.0 + self.lemon_frac * (self.lemon_multiple - 1.0))

    @property
    def per_gpu_hour(self) -> float:
        """All causes together; rare events that take many nodes are not in it."""
        return sum(cause.per_gpu_hour for cause in self.causes)

    def groups_per_hour(self, num_gpus: int) -> float:
        """Return how often several hosts are taken at once in a run on so many GPUs, no spares."""
        return self.per_hour_groups * (num_gpus / self.groups_gpus if self.groups_gpus else 1.0)

    def mtbf_s(self, num_gpus: int) -> float:
        """Return the mean time between failures of a run on so many GPUs."""
        rate = self.per_gpu_hour * num_gpus
        return HOUR_S / rate if rate > 0 else float("inf")


_LLAMA3_GPU_HOURS = 21.23e6
# (cause, effect, failures in 54 days on 16,384 H100)
_TABLE_5 = (
    ("faulty GPU", GPU, 148),
    ("GPU HBM3", GPU, 72),
    ("software bug", SOFTWARE, 54),
    ("network switch/cable", NETWORK, 35),
    ("host maintenance", HOST, 32),
    ("GPU SRAM", GPU, 19),
    ("GPU system processor", GPU, 17),
    ("NIC", NETWORK, 7),
    ("NCCL watchdog timeout", HANG, 7),
    ("silent data corruption", CORRUPTION, 6),
    ("GPU thermal/sensor", GPU, 6),
    ("SSD", SSD, 3),
    ("power supply", HOST, 3),
    ("chassis", HOST, 2),
    ("IO board", HOST, 2),
    ("dependency", SOFTWARE, 2),
    ("CPU", HOST, 2),
    ("system memory", HOST, 2),
)
_TABLE_5_TOTAL = sum(count for _, _, count in _TABLE_5)


def _split(per_gpu_hour: float) -> tuple[Cause, ...]:
    """Return a total rate, split as Llama 3's Table 5 is."""
    return tuple(
        Cause(name, effect, per_gpu_hour * count / _TABLE_5_TOTAL)
        for name, effect, count in _TABLE_5
    )


_MACHINE = (GPU, HOST, NETWORK, CORRUPTION)
"""Effects after which a machine is replaced."""


def with_own_frac(model: FailureModel, num_gpus: int) -> FailureModel:
    """Return a model whose groups and early failures are in the total observed on so many GPUs.

    A machine that is lost is replaced, and so many of the new ones fail at once, so the total is
    the own failures, those of groups, and a share of both and of itself.
    """
    total = model.per_gpu_hour * num_gpus
    lost = sum(c.per_gpu_hour for c in model.causes if c.effect in _MACHINE) / model.per_gpu_hour
    groups = model.per_hour_groups * model.group_mean
    again = 1.0 - model.infant_frac * lost
    own = (total - groups * (1.0 + model.infant_frac / again)) * again
    return msgspec.structs.replace(model, own_frac=max(own / total, 0.0), groups_gpus=num_gpus)


_OPT = FailureModel(
    name="opt",
    source=(
        "OPT-175B chronicles: 2 machines a day of 124, 5 hosts at once on 6 December, the whole"
        " cluster on 21 December, 4 divergences in 143,000 steps; split by Table 5"
    ),
    causes=_split(2.0 / (24 * 992)),
    per_hour_groups=1 / (56 * 24),
    per_hour_outages=1 / (56 * 24),
    outage_hours=48.0,
    per_hour_store=3 / (56 * 24),
    per_gpu_hour_slow=5.5e-7,
    # New machines fail early (Aegis, NSDI'25: 73 % of failures in the first ten minutes), and
    # replacements were often the same bad machine again (chronicles, 27 % update).
    infant_frac=0.15,
    lemon_frac=0.02,
    lemon_multiple=10.0,
    divergences_per_1000_steps=4 / 143,
)
_MODELS = (
    FailureModel(
        name="llama3",
        source="arXiv 2407.21783 Table 5: 419 unplanned interruptions in 54 days, 16,384 H100",
        causes=_split(_TABLE_5_TOTAL / _LLAMA3_GPU_HOURS),
        # 16 of 27 large jobs had a slow rank (Greyhound, ATC'25): about one in 1.8 million GPU-h.
        per_gpu_hour_slow=5.5e-7,
    ),
    FailureModel(
        name="rsc1",
        source="arXiv 2410.21680: RSC-1, 6.50 failures per 1000 node-days, A100; split by Table 5",
        causes=_split(6.50 / (1000 * 24 * 8)),
        lemon_frac=0.012,
        lemon_multiple=10.0,
    ),
    FailureModel(
        name="rsc2",
        source="arXiv 2410.21680: RSC-2, 2.34 failures per 1000 node-days, A100; split by Table 5",
        causes=_split(2.34 / (1000 * 24 * 8)),
        lemon_frac=0.017,
        lemon_multiple=10.0,
    ),
    with_own_frac(_OPT, 992),
    FailureModel(name="none", source="nothing ever fails", causes=()),
)
MODELS = {model.name: model for model in _MODELS}


def model_named(name: str) -> FailureModel:
    """Return a published model. Raises: ConfigError[unknown-failure-model]."""
    if name not in MODELS:
        raise ConfigError(
            "unknown-failure-model",
            f"no failure model is called {name!r}.",
            remedy=f"Known: {', '.join(MODELS)}.",
        )
    return MODELS[name]


def read_model(path: Path) -> FailureModel:
    """Return the failure model of a JSON file with the fields of FailureModel.

    Raises: ConfigError[bad-failure-model].
    """
    try:
        found = msgspec.json.decode(path.read_bytes(), type=prepared(FailureModel), strict=True)
        _check(found)
    except (OSError, msgspec.MsgspecError, ValueError) as error:
        raise ConfigError(
            "bad-failure-model",
            f"{path} holds no failure model: {error}.",
            remedy="Give a JSON object with name, source and causes, each with name, effect "
            f"({', '.join(EFFECT_NAMES)}) and per_gpu_hour; docs/simulation.md has one.",
        ) from error
    return found


def _check(model: FailureModel) -> None:
    for cause in model.causes:
        if cause.effect not in EFFECT_NAMES:
            raise ValueError(f"effect {cause.effect!r} is unknown")
        if not 0.0 <= cause.per_gpu_hour < math.inf:
            raise ValueError(f"{cause.name!r} strikes {cause.per_gpu_hour} times a GPU-hour")
    for name in ("own_frac", "infant_frac", "lemon_frac"):
        if not 0.0 <= getattr(model, name) <= 1.0:
            raise ValueError(f"{name} is {getattr(model, name)}, no share")
    if model.infant_frac and not model.causes:
        raise ValueError("infant_frac without a cause")
    if model.lemon_multiple < 1.0 or model.slow_factor < 1.0:
        raise ValueError("lemon_multiple and slow_factor are 1 or more")
    rates = ("per_hour_groups", "per_hour_outages", "per_hour_store", "per_gpu_hour_slow")
    lengths = ("outage_hours", "store_minutes", "divergences_per_1000_steps")
    for name in (*rates, *lengths):
        if not 0.0 <= getattr(model, name) < math.inf:
            raise ValueError(f"{name} is {getattr(model, name)}")


def exponential_model(mtbf_hours: float, num_gpus: int) -> FailureModel:
    """Return a model in which one kind of failure strikes so often, and nothing else happens."""
    rate = 1.0 / (mtbf_hours * num_gpus)
    source = f"exponential, one failure in {mtbf_hours:g} h of the whole run"
    return FailureModel("exponential", source, (Cause("killed worker", KILL, rate),))
