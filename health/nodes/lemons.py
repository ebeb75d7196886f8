"""Remember which machines and GPUs fail again and again, across attempts, runs and replacements.

A provider asked for a new node often returns the same bad machine under a new name, so nothing here
is known by host name: a machine is known by its hardware UUID and by the GPUs in it, a GPU by its
UUID or serial. Every failure adds to a score that halves with time; past its budget a machine or
GPU is quarantined, and it stays so until the score has fallen well below the budget or a person
releases it.

Pure: record() and release() return a new book, and the caller keeps it as JSON.
"""

from __future__ import annotations

import msgspec


class LemonBudget(msgspec.Struct, frozen=True):
    """How much failing is too much.

    machine_score_max, gpu_score_max: at this score quarantine begins. A failure weighs 1 when the
        node is to blame for certain; see Failure.weight.
    half_life_s:   a failure counts half after this long.
    release_frac:  quarantine ends once the score is under this part of the budget.
    """

    machine_score_max: float = 2.5
    gpu_score_max: float = 1.5
    half_life_s: float = 14 * 86400.0
    release_frac: float = 0.4


class GpuIdentity(msgspec.Struct, frozen=True):
    """A GPU as its driver names it; serial "" where the board has none."""

    uuid: str
    serial: str = ""


class MachineIdentity(msgspec.Struct, frozen=True):
    """A machine as its hardware names it. uuid "" where it cannot be read; then its GPUs tell."""

    uuid: str
    gpus: tuple[GpuIdentity, ...] = ()

    @property
    def is_known(self) -> bool:
        """Whether there is anything by which it could be told from others."""
        return bool(self.uuid or self.gpus)


class Failure(msgspec.Struct, frozen=True):
    """One failure laid at a machine's door.

    gpus:   UUIDs of the GPUs to blame; () blames the machine as a whole.
    weight: 1 for a fault that is the node's for certain, less for a suspicion (0.3 for a hang whose
            laggard sat there), 0 for what the program or the data did.
    host:   the name it went by; for people only.
    """

    time_s: float
    run: str
    attempt: int
    machine: MachineIdentity
    cause: str
    weight: float = 1.0
    gpus: tuple[str, ...] = ()
    host: str = ""


class LemonEntry(msgspec.Struct, frozen=True, omit_defaults=True):
    """The record of one machine or GPU. score is as of time_s.

    last_weight: what the last attempt in which it failed has counted so far; in books from before
             it was noted, as much as there is.
    members: UUIDs of the GPUs seen in a machine, by which it is known again.
    """

    score: float
    time_s: float
    failures_total: int
    last_run: str
    last_attempt: int
    last_cause: str
    last_host: str = ""
    serial: str = ""
    members: tuple[str, ...] = ()
    quarantined_s: float | None = None
    released_by: str = ""
    last_weight: float = 1.0


class LemonBook(msgspec.Struct, frozen=True):
    """Every machine and GPU that ever failed. Keys: machine UUID (or its GPUs), GPU UUID."""

    machines: dict[str, LemonEntry] = {}
    gpus: dict[str, LemonEntry] = {}


class LemonVerdict(msgspec.Struct, frozen=True):
    """Whether a machine may be used. score: the highest of the machine and its GPUs, now."""

    is_quarantined: bool
    score: float
    reason: str = ""


def record(book: LemonBook, failure: Failure, budget: LemonBudget) -> LemonBook:
    """Return the book with one more failure in it.

    One attempt counts once per machine and per GPU, however many of its ranks report it, and by the
    heaviest of its failures; a weightless failure changes nothing.
    """
    if failure.weight <= 0:
        return book
    machine_key = _machine_key(book, failure.machine)
    machines, gpus = dict(book.machines), dict(book.gpus)
    if machine_key:
        members = tuple(gpu.uuid for gpu in failure.machine.gpus)
        entry = _add(machines.get(machine_key), failure, budget.machine_score_max, budget)
        machines[machine_key] = msgspec.structs.replace(entry, members=members or entry.members)
    serials = {gpu.uuid: gpu.serial for gpu in failure.machine.gpus}
    for uuid in failure.gpus:
        entry = _add(gpus.get(uuid), failure, budget.gpu_score_max, budget)
        gpus[uuid] = msgspec.structs.replace(entry, serial=serials.get(uuid, "") or entry.serial)
    return LemonBook(machines=machines, gpus=gpus)


def judge_machine(
    book: LemonBook, machine: MachineIdentity, now_s: float, budget: LemonBudget
) -> LemonVerdict:
    """Return whether a machine, by itself or by one of its GPUs, is a lemon now."""
    verdict = LemonVerdict(is_quarantined=False, score=0.0)
    key = _machine_key(book, machine)
    found = [("machine", key, book.machines.get(key), budget.machine_score_max)]
    for gpu in machine.gpus:
        gpu_key = _gpu_key(book, gpu)
        found.append(("GPU", gpu_key, book.gpus.get(gpu_key), budget.gpu_score_max))
    for what, name, entry, score_max in found:
        if entry is None:
            continue
        score = _score_at(entry, now_s, budget)
        held = _is_held(entry, score, score_max, budget)
        reason = verdict.reason
        if held and not verdict.is_quarantined:
            reason = (
                f"{what} {name}: {entry.failures_total} failures, last {entry.last_cause} in run"
                f" {entry.last_run} as {entry.last_host or 'unnamed'}; score {score:.2f} against"
                f" a budget of {score_max:g}"
            )
        verdict = LemonVerdict(verdict.is_quarantined or held, max(verdict.score, score), reason)
    return verdict


def release(book: LemonBook, machine: MachineIdentity, by: str, now_s: float) -> LemonBook:
    """Return the book with a machine and its GPUs forgiven; their failure counts stay."""
    machines, gpus = dict(book.machines), dict(book.gpus)
    key = _machine_key(book, machine)
    if key in machines:
        machines[key] = _forgive(machines[key], by, now_s)
    for gpu in machine.gpus:
        gpu_key = _gpu_key(book, gpu)
        if gpu_key in gpus:
            gpus[gpu_key] = _forgive(gpus[gpu_key], by, now_s)
    return LemonBook(machines=machines, gpus=gpus)


def _add(
    entry: LemonEntry | None, failure: Failure, score_max: float, budget: LemonBudget
) -> LemonEntry:
    if entry is None:
        entry = LemonEntry(0.0, failure.time_s, 0, "", 0, "")
    is_same_attempt = (entry.last_run, entry.last_attempt) == (failure.run, failure.attempt)
    added = failure.weight - (entry.last_weight if is_same_attempt else 0.0)
    if added <= 0:
        return entry
    # A late report is counted as of the newest time known, so that time never runs backwards.
    time_s = max(entry.time_s, failure.time_s)
    before = _score_at(entry, time_s, budget)
    still_held = _is_held(entry, before, score_max, budget)
    score = before + added
    since_s = entry.quarantined_s if still_held else None
    if since_s is None and score >= score_max:
        since_s = time_s
    return LemonEntry(
        score=score,
        time_s=time_s,
        failures_total=entry.failures_total + (not is_same_attempt),
        last_run=failure.run,
        last_attempt=failure.attempt,
        last_cause=failure.cause,
        last_host=failure.host,
        serial=entry.serial,
        members=entry.members,
        quarantined_s=since_s,
        released_by="" if since_s is not None else entry.released_by,
        last_weight=failure.weight,
    )


def _score_at(entry: LemonEntry, now_s: float, budget: LemonBudget) -> float:
    age_s = max(0.0, now_s - entry.time_s)
    return float(entry.score * 0.5 ** (age_s / budget.half_life_s))


def _is_held(entry: LemonEntry, score: float, score_max: float, budget: LemonBudget) -> bool:
    return entry.quarantined_s is not None and score >= budget.release_frac * score_max


def _forgive(entry: LemonEntry, by: str, now_s: float) -> LemonEntry:
    return msgspec.structs.replace(
        entry, score=0.0, time_s=max(entry.time_s, now_s), quarantined_s=None, released_by=by
    )


def _machine_key(book: LemonBook, machine: MachineIdentity) -> str:
    """Return the key of a machine: one that is in the book already, else a new one, else "".

    It is known again by its UUID, or by holding at least half of the GPUs that were in it.
    """
    if machine.uuid and machine.uuid in book.machines:
        return machine.uuid
    uuids = {gpu.uuid for gpu in machine.gpus if gpu.uuid}
    for key, entry in book.machines.items():
        if entry.members and 2 * len(uuids.intersection(entry.members)) >= len(entry.members):
            return key
    return machine.uuid or "+".join(sorted(uuids))


def _gpu_key(book: LemonBook, gpu: GpuIdentity) -> str:
    """Return the key of a GPU: its UUID, or that of the entry with the same serial."""
    if gpu.uuid in book.gpus or not gpu.serial:
        return gpu.uuid
    same = (uuid for uuid, entry in book.gpus.items() if entry.serial == gpu.serial)
    return next(same, gpu.uuid)
