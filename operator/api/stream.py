"""Events as they happen, for any number of readers: server-sent events, resumable by their number.

    id: 17
    data: {"seq":17,"time_s":...,"attempt":2,"epoch":1,"event":{"kind":"node-lost",...}}

Each record is a message of its own with its sequence number as id. Messages with a name say what
is no record: `rewound` (records already told were withdrawn; the stream ends, begin again), `rest`
(the run is at rest and all is told). A comment every few seconds says that the server lives.

Nothing is kept for a reader: each has a place in the journal and is told on from there as fast as
it takes it, so a slow one costs one slice of memory, and is cut off by the gate when it stops.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import TypeVar

import msgspec

from ...logbook import events as ev
from ...logbook.errors import MidwatchError
from ...logbook.reader import Follower, Rewound
from ...logbook.record import Record, to_json
from ...logbook.state import RunState
from .order import Bounds
from .refusal import Refusal, document_of
from .run_view import RunView

PULSE_S = 0.2
RETRY_MS = 2000
T = TypeVar("T")
Offload = Callable[..., Awaitable[T]]


class Told(msgspec.Struct, frozen=True):
    """What a named message carries: the state of the run, and the newest event there is."""

    status: str
    seq: int


class Pulse:
    """Looks at the journal for all streams together, and only while there is one."""

    def __init__(self, view: RunView, bounds: Bounds, offload: Offload[RunState]) -> None:
        self._view = view
        self._bounds = bounds
        self._offload = offload
        self._changed, self._looking = asyncio.Condition(), asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self.num_streams = 0
        self.is_closing = False
        self.state = RunState()
        self.version = 0
        self.trouble: MidwatchError | None = None

    async def admit(self) -> None:
        """Look once for a new stream.

        Raises: Refusal[too-many-streams]; what the journal cannot be read for.
        """
        if self.num_streams >= self._bounds.streams:
            message = f"{self.num_streams} streams are open, of {self._bounds.streams} at most."
            raise Refusal(429, "too-many-streams", message, remedy="Ask for /v1/events instead.")
        await self._look()
        if self.trouble is not None:
            raise self.trouble

    @contextlib.contextmanager
    def beating(self) -> Iterator[None]:
        """Count a stream, and keep the pulse going while there is one."""
        self.num_streams += 1
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._beat())
        try:
            yield
        finally:
            self.num_streams -= 1

    async def wait_beyond(self, version: int, timeout_s: float) -> bool:
        """Wait until something has changed since version; return whether it has."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s), self._changed:
                await self._changed.wait_for(lambda: self.version != version or self.is_closing)
        return self.version != version

    async def close(self) -> None:
        """Let every stream end."""
        self.is_closing = True
        await self._tell()

    async def _beat(self) -> None:
        while self.num_streams and not self.is_closing:
            await asyncio.sleep(PULSE_S)
            await self._look()

    async def _look(self) -> None:
        # One at a time: of two looks the later one is to have the last word.
        async with self._looking:
            try:
                state, trouble = await self._offload(self._view.state), None
            except (MidwatchError, OSError) as error:
                state, trouble = self.state, _as_trouble(error)
            is_news = state is not self.state or (trouble is None) != (self.trouble is None)
            self.state, self.trouble = state, trouble
        if is_news:
            self.version += 1
            await self._tell()

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()


class EventStream:
    """What one reader is told from a sequence number on. to_rest: end once the run is at rest."""

    def __init__(self, directory: Path, pulse: Pulse, after: int, *, to_rest: bool) -> None:
        self._pulse = pulse
        self._seq = after
        self._to_rest = to_rest
        self._follower: Follower[ev.Event] = Follower(directory, ev.Event, from_seq=after + 1)
        self._rested: int | None = None

    async def frames(
        self, offload: Offload[list[Record[ev.Event]]], heartbeat_s: float
    ) -> AsyncGenerator[bytes, None]:
        """Yield the stream in pieces of bounded size until it ends."""
        pulse = self._pulse
        try:
            with pulse.beating():
                yield b"retry: %d\n\n" % RETRY_MS
                if self._seq > pulse.state.seq:
                    # Whoever asks has seen what is no longer there.
                    raise Rewound("the journal ends before")
                async for piece in self._pieces(offload, heartbeat_s):
                    yield piece
        except Rewound:
            yield _named("rewound", pulse.state)
        except (MidwatchError, OSError) as error:
            yield _message("trouble", msgspec.json.encode(document_of(_as_trouble(error))))
        finally:
            self._follower.close()

    async def _pieces(
        self, offload: Offload[list[Record[ev.Event]]], heartbeat_s: float
    ) -> AsyncGenerator[bytes, None]:
        while True:
            version = self._pulse.version
            while records := await offload(self._follower.poll):
                self._seq = records[-1].seq
                yield b"".join(map(_frame, records))
            if (rest := self._rest()) is not None:
                yield rest
                if self._to_rest:
                    return
            if self._pulse.is_closing:
                return
            has_changed = await self._pulse.wait_beyond(version, heartbeat_s)
            if not has_changed and not self._pulse.is_closing:
                yield b": alive\n\n"

    def _rest(self) -> bytes | None:
        """Return what says that the run is at rest, once for each time that it has come to it."""
        state = self._pulse.state
        if not state.is_at_rest or state.seq > self._seq or self._rested == self._seq:
            return None
        self._rested = self._seq
        return _named("rest", state)


def _as_trouble(error: MidwatchError | OSError) -> MidwatchError:
    if isinstance(error, MidwatchError):
        return error
    return Refusal(503, "journal-unreadable", f"the journal cannot be read: {error.strerror}.")


def _frame(record: Record[ev.Event]) -> bytes:
    return b"id: %d\ndata: %b\n\n" % (record.seq, to_json(record))


def _named(name: str, state: RunState) -> bytes:
    return _message(name, msgspec.json.encode(Told(state.status, state.seq)))


def _message(name: str, data: bytes) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), data)
