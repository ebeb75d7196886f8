"""What a change comes to: each value before and after, from which step, and for how long.

It stands in the decision as evidence, so a dry run shows it wherever it was asked for, and the
journal keeps it.
"""

from __future__ import annotations

from ...logbook.events import InterventionRequested
from ...logbook.fold_interventions import is_unheard
from ...logbook.hyper import ONCE, Hyper
from ...logbook.parameters import LASTING, PARAMETERS, parse_range, values_of
from ...logbook.phrases import request_text
from ...logbook.state import RunState
from ...logbook.words import steps_text
from ..spec import RunSpec
from .context import Pairs
from .detectors import modes_now, switch_of
from .refusals import value_now

FROM_SPEC = "what the spec says"


def foretell(state: RunState, spec: RunSpec, request: InterventionRequested) -> Pairs:
    """Return what would be changed by a request that can be carried out, for a person."""
    match request.action:
        case "detector":
            detector, mode = switch_of(request.target)
            return ((detector, f"{modes_now(state, spec)[detector]} -> {mode}"),)
        case "skip":
            return (*_left_out(state, request.target), *_when(state, spec, request))
        case "revert":
            is_done_here = is_unheard(state, state.interventions[request.target])
            when = () if is_done_here else _when(state, spec, request)
            return (*_taken_back(state, request.target), *when)
    return (*_values(state, request), *_when(state, spec, request))


def _values(state: RunState, request: InterventionRequested) -> Pairs:
    found: list[tuple[str, str]] = []
    for name, wanted in values_of(request.action, request.value, request.values).items():
        now = value_now(state, name)
        # Factors multiply: what is asked for is not what holds then.
        then = wanted * now if name == "lr-factor" and now is not None else wanted
        found.append((name, _turn(now, then)))
        rate = state.last.lr if state.last is not None else None
        if name == "lr-factor" and rate is not None:
            # A factor says little to whoever thinks in rates.
            found.append(("lr", f"{rate:.6g}, on the same schedule {rate * wanted:.6g}"))
    return tuple(found)


def _when(state: RunState, spec: RunSpec, request: InterventionRequested) -> Pairs:
    steps = spec.trainer.get("steps")
    of = f" of {steps}" if isinstance(steps, int) else ""
    if request.action in ONCE and request.at_step is not None:
        return (("when", f"step {request.at_step}{of} is completed"),)
    if request.at_step is None:
        first = f"{state.step + 1}{of}, or the first after it that all ranks agree on"
    else:
        first = f"{request.at_step}{of}"
    if request.action not in LASTING:
        return (("from step", first),)
    return (("from step", first), ("for", _how_long(request)))


def _how_long(request: InterventionRequested) -> str:
    if request.for_steps is None:
        return "good"
    last = f", up to step {request.at_step + request.for_steps - 1}" if request.at_step else ""
    return f"{steps_text(request.for_steps)}{last}; then as before"


def _left_out(state: RunState, target: str) -> Pairs:
    found = parse_range(target)
    assert found is not None, "it is refused otherwise"
    first, last, is_samples = found
    what = "samples" if is_samples else "data steps"
    rows = [("left out", f"{what} {first} up to {last - 1}, {last - first} in all")]
    if state.last is not None:
        rows.append(("data step now", f"{state.last.data_step}, at step {state.last.step}"))
    return tuple(rows)


def _taken_back(state: RunState, target: str) -> Pairs:
    known = state.interventions[target]
    asked, next_step = known.request, state.step + 1
    said = f"{request_text(asked)} of {asked.by} ({asked.reason}), {known.stage}"
    at = f" from step {known.at_step}" if known.at_step is not None else ""
    rows = [("taken back", f"{said}{at}")]
    left = state.hyper.without(target, next_step)
    for name in values_of(asked.action, asked.value, asked.values):
        if name in ("lr", "lr-factor"):
            before, after = state.hyper.factor_at(next_step), left.factor_at(next_step)
            rows += [("lr-factor", _turn(before, after))] if before != after else []
        elif not PARAMETERS[name].is_momentary and _is_held(state.hyper, left, name, next_step):
            rows.append((name, _turn(value_now(state, name), left.value_at(name, next_step))))
    return tuple(rows)


def _is_held(now: Hyper, left: Hyper, parameter: str, step: int) -> bool:
    """Whether a parameter holds at a step what it does not without the change."""
    return now.value_at(parameter, step) != left.value_at(parameter, step)


def _turn(before: float | None, after: float | None) -> str:
    then = FROM_SPEC if after is None else f"{after:.6g}"
    return f"{'not read back' if before is None else f'{before:.6g}'} -> {then}"
