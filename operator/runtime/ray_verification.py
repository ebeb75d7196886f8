"""Reading one checkpoint back by errands of the agents: each its own part, one of them the store.

Nothing here waits: answers come on threads of Ray's.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

import msgspec

from ...logbook.decoding import prepared
from ...logbook.errors import is_out_of_reach
from ..agent.upload_wire import Answer, CheckPart, CheckStored, Errand
from ..ports import VerifyResult
from .ray_calls import ignore, on_result

_encode = msgspec.msgpack.Encoder().encode
_log = logging.getLogger(__name__)


def run_errand(agent: Any, errand: Errand) -> Any:
    """Have an agent's uploader run an errand; return the reference to its encoded answer."""
    return agent.run_errand.remote(_encode(errand))


def answer_of(payload: bytes) -> Answer:
    """Return the answer to an errand."""
    return msgspec.msgpack.decode(payload, type=prepared(Answer))


class Verification:
    """One reading back: a checkpoint is sound when each of its files is sound somewhere.

    An agent that says nothing, or a store that cannot be reached, says nothing about the bytes:
    unless all are sound without it there is no result, and the checkpoint is asked for again.
    """

    def __init__(
        self,
        checkpoint: str,
        agents: list[tuple[str, Any]],
        ended: Callable[[VerifyResult | None], None],
    ) -> None:
        self._checkpoint = checkpoint
        self._agents = agents
        self._ended = ended
        self._lock = threading.Lock()
        self._left = len(agents)
        self._answers: list[Answer] = []
        self._is_one_silent = False

    def begin(self) -> None:
        for _, agent in self._agents:
            on_result(run_errand(agent, CheckPart(self._checkpoint)), self._heard, self._lost)

    def _heard(self, answer: bytes) -> None:
        self._count(answer_of(answer))

    def _lost(self, error: BaseException) -> None:
        ignore(error)
        self._count(None)

    def _count(self, answer: Answer | None) -> None:
        with self._lock:
            self._left -= 1
            if answer is not None and not answer.error:
                self._answers.append(answer)
            self._is_one_silent |= _is_silent(answer)
            if self._left:
                return
        sound = {name for answer in self._answers for name in answer.sound}
        bad = {name: why for answer in self._answers for name, why in answer.bad}
        named = {name for answer in self._answers for name in answer.missing} | bad.keys()
        rest = tuple(sorted(named - sound))
        if self._answers and not rest:
            self._ended(VerifyResult(self._checkpoint, ""))
            return
        # What no node has a part of is read in the store, file by file.
        errand = CheckStored(self._checkpoint, rest if self._answers else None)
        on_result(
            run_errand(self._agents[0][1], errand),
            lambda answer: self._stored(answer, bad),
            self._gave_up,
        )

    def _gave_up(self, error: BaseException) -> None:
        ignore(error)
        self._ended(None)

    def _stored(self, payload: bytes, bad: dict[str, str]) -> None:
        answer = answer_of(payload)
        error = answer.error or "; ".join(
            f"{bad[name]} In the store: {why}" if name in bad else why for name, why in answer.bad
        )
        # Where somebody is silent, what is not sound here may be sound there.
        if is_out_of_reach(error) or (error and self._is_one_silent):
            _log.info("cannot verify %s yet: %s", self._checkpoint, error)
            self._ended(None)
            return
        self._ended(VerifyResult(self._checkpoint, error[:1000]))


def _is_silent(answer: Answer | None) -> bool:
    """Whether nothing was learned of a part: that its manifest is missing or bad is an answer."""
    return answer is None or (answer.error != "" and not answer.error.startswith("[manifest-"))
