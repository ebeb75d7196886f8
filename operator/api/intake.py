"""What callers ask for, on its way to the desk of the run: checked, signed, asked for once."""

from __future__ import annotations

import functools
import operator
import secrets
import threading
import time
from collections.abc import Callable
from types import UnionType
from typing import Annotated, Any, get_args

import msgspec

from ...logbook.decisions import Decision
from ...logbook.decoding import prepared
from ...logbook.errors import MidwatchError
from ...logbook.events import InterventionRequested
from ...logbook.fold_interventions import recent_touches
from ...logbook.state import Intervention, RunState, Touch
from ..desk import MAX_REQUEST_BYTES, Request, post_request
from ..remarks import MAX_CHARS, make_remark, record_remark
from .order import Bounds
from .refusal import Refusal
from .run_view import RunView
from .waiting import count_waiting

_REASON = Annotated[str, msgspec.Meta(min_length=1, max_length=2000, pattern=r"\S")]
_ACTION = Annotated[str, msgspec.Meta(pattern=r"^[a-z][a-z-]{0,63}$")]
_ID = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
_NAME = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
_OWN: dict[str, Any] = {"action": _ACTION, "reason": _REASON, "id": _ID, "by": _NAME}
_BOUNDED: dict[Any, Any] = {
    str: Annotated[str, msgspec.Meta(max_length=500)],
    int: Annotated[int, msgspec.Meta(ge=0, le=2**53)],
}


def _asked_fields() -> list[Any]:
    """Every field of a request, so that one added there is taken here by itself."""
    required: list[Any] = []
    optional: list[Any] = []
    for field in msgspec.structs.fields(InterventionRequested):
        kind = _OWN.get(field.name) or _bounded(field.type)
        if field.name in ("id", "by"):
            optional.append((field.name, kind | None, None))
        elif field.required:
            required.append((field.name, kind))
        else:
            optional.append((field.name, kind, _default_of(field)))
    return required + optional


def _bounded(kind: Any) -> Any:
    """Return the type of a field with bounds on its texts and whole numbers."""
    options = get_args(kind)
    if isinstance(kind, UnionType) and options:
        return functools.reduce(operator.or_, map(_bounded, options))
    return _BOUNDED.get(kind, kind)


def _default_of(field: Any) -> Any:
    made = field.default_factory
    return field.default if made is msgspec.NODEFAULT else msgspec.field(default_factory=made)


InterventionAsked = msgspec.defstruct(
    "InterventionAsked",
    _asked_fields(),
    frozen=True,
    forbid_unknown_fields=True,
    module=__name__,
)
InterventionAsked.__doc__ = """A change asked for. id: chosen by the caller, so that the request can
be sent again without being made twice; by: for whom the caller speaks; the rest is as in
InterventionRequested."""


class RemarkAsked(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Something to be added to the note of an incident. by: for whom the caller speaks.

    id: chosen by the caller, so that it can be sent again without standing there twice.
    """

    text: Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_CHARS)]
    by: _NAME | None = None
    id: _ID | None = None


class Receipt(msgspec.Struct, frozen=True, omit_defaults=True):
    """What has become of a request so far. stage: as in Intervention.

    touched: what changed the same things a short while ago, by topic; nothing where nobody did.
    """

    id: str
    stage: str
    touched: dict[str, Touch] = {}


class RemarkReceipt(msgspec.Struct, frozen=True):
    """stage: "requested", or "recorded" where the run is over and nobody else would do it."""

    stage: str


class Intake:
    """Lays what is asked for on the desk of a run."""

    def __init__(
        self, view: RunView, bounds: Bounds, clock: Callable[[], float] = time.time
    ) -> None:
        self._view = view
        self._bounds = bounds
        self._clock = clock
        self._lock = threading.Lock()
        self._settling = threading.Lock()

    def ask(self, body: bytes, signer: str) -> Receipt:
        """Lay a change on the desk; one that was asked for already is told of, and not laid again.

        Where the run is over, it is carried out before this returns, or refused.
        signer: who sent it, as far as it is known for sure.
        Raises: Refusal[body-not-json, body-invalid, intervention-id-taken, run-over, desk-full,
            too-busy]; MidwatchError for what could not be carried out.
        """
        asked = _decoded(body, InterventionAsked)
        request = _signed(asked, signer)
        # One at a time: two callers with one id must not both find it free.
        with self._lock:
            if asked.id is not None and (known := self._known(asked.id)) is not None:
                return _same(known, request)
            self._refuse_flood()
            _refuse_bulk(request)
            state = self._view.state()
            if not (state.status.is_terminal and state.is_at_rest):
                now_s = self._clock()
                post_request(self._view.run_dir, request, time_s=now_s)
                return Receipt(request.id, "requested", recent_touches(state, request, now_s))
        self._settle(request, state)
        known = self._known(request.id)
        return Receipt(request.id, known.stage if known is not None else "requested")

    def try_out(self, body: bytes, signer: str) -> list[Decision]:
        """Return what would be decided about a change now, [] when it would have to wait."""
        # Here alone: policy takes its time to load, and only a dry run needs it.
        from ..cli.steer import plan_request

        request = _signed(_decoded(body, InterventionAsked), signer)
        try:
            return plan_request(self._view.state(), request, self._clock())
        except MidwatchError:
            raise
        except ValueError as error:
            raise Refusal(
                503,
                "spec-invalid",
                f"the spec of this run is not understood here: {error}.",
                remedy="Serve it with the version of midwatch that runs it.",
            ) from error

    def remark(self, incident: str, body: bytes, signer: str) -> RemarkReceipt:
        """Have a remark added to an incident.

        Raises: NotFoundError[no-such-incident]; Refusal[body-not-json, body-invalid, desk-full].
        """
        asked = _decoded(body, RemarkAsked)
        self._view.incident(incident)
        text = asked.text.strip()
        if not text:
            raise Refusal(422, "body-invalid", "the text is empty.")
        note = make_remark(_by(asked.by, signer), text, incident, asked.id)
        with self._lock:
            self._refuse_flood()
            _refuse_bulk(note)
            is_written = record_remark(self._view.run_dir, self._view.state(), note)
        return RemarkReceipt("recorded" if is_written else "requested")

    def _known(self, name: str) -> Intervention | None:
        return next((k for k in self._view.interventions() if k.request.id == name), None)

    def _settle(self, request: InterventionRequested, state: RunState) -> None:
        """Have done what can be done for a run that has no controller any more."""
        # Here alone: a controller takes its time to load.
        from ..aftermath import hand_in

        # Reading a checkpoint back takes long: others are told so, and hold no thread meanwhile.
        if not self._settling.acquire(blocking=False):
            message = "something else is being done for this run, which is over."
            raise Refusal(503, "too-busy", message, remedy="Ask again.")
        try:
            hand_in(self._view.run_dir, request, state)
        except MidwatchError as error:
            if error.code != "run-is-over":
                raise
            raise Refusal(409, "run-over", error.message, remedy=error.remedy) from error
        finally:
            self._settling.release()

    def _refuse_flood(self) -> None:
        waiting = count_waiting(self._view.run_dir)
        if waiting >= self._bounds.waiting:
            raise Refusal(
                429,
                "desk-full",
                f"{waiting} requests wait for the controller, of {self._bounds.waiting} at most.",
                remedy="See why it takes none: midwatch status.",
            )


def _refuse_bulk(request: Request) -> None:
    # A desk would put it aside, and nobody would be told.
    size = len(msgspec.json.encode(request))
    if size > MAX_REQUEST_BYTES:
        raise Refusal(
            413, "body-too-large", f"the request has {size} bytes, of {MAX_REQUEST_BYTES} at most."
        )


def _decoded(body: bytes, kind: Any) -> Any:
    try:
        return msgspec.convert(_with_whole_numbers(msgspec.json.decode(body)), prepared(kind))
    except msgspec.ValidationError as error:
        raise Refusal(422, "body-invalid", f"{error}.") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Refusal(400, "body-not-json", f"the body is not JSON: {error}.") from error
    except RecursionError as error:
        raise Refusal(400, "body-not-json", "the body is nested too deeply.") from error


def _with_whole_numbers(value: Any) -> Any:
    """Return plain data in which 610.0 is 610, as JSON has it."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {key: _with_whole_numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_whole_numbers(item) for item in value]
    return value


def _signed(asked: Any, signer: str) -> InterventionRequested:
    fields = msgspec.structs.asdict(asked)
    fields["id"] = asked.id or f"{asked.action}-{secrets.token_hex(4)}"
    fields["by"] = _by(asked.by, signer)
    return InterventionRequested(**fields)


def _by(claimed: str | None, signer: str) -> str:
    """Return who is on record for a request: whom the caller named, and always who called.

    Nobody can sign for anybody else without the record saying that it was through the API.
    """
    said = " ".join((claimed or "").split())
    said = "".join(c for c in said if c.isprintable())
    return f"{said} via {signer}" if said else signer


def _same(known: Intervention, request: InterventionRequested) -> Receipt:
    if known.request != request:
        raise Refusal(
            409,
            "intervention-id-taken",
            f"{request.id} was asked for already, and not the same: {known.request.action} by "
            f"{known.request.by}.",
            remedy="Choose another id.",
        )
    return Receipt(request.id, known.stage)
