"""The agent's hold on its uploader process: started again when it dies, asked, and listened to."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

from ...checkpoints.retrying import Backoff
from ...checkpoints.upload_part import Troubles
from ...logbook.errors import Retryable
from ...logbook.wire import encode_frame
from .reports import AgentReport, CheckpointStored, PartHeld, UploadTrouble
from .upload_wire import (
    Answer,
    Errand,
    News,
    PartFound,
    Request,
    Stored,
    UploadConfig,
    news_reader,
)

_RESTART_FIRST_S, _RESTART_MAX_S = 0.5, 30.0
_CLOSE_S = 5.0
_MODULE = "midwatch.operator.agent.uploader"
_READ_BYTES = 1 << 16
PARTS_MAX = 64
"""Parts remembered for a controller that knows nothing yet; those found last."""
_log = logging.getLogger(__name__)


class Uploads:
    """The uploads of one node. tell is called with reports, on a thread of this object's.

    newest: returns the newest attempt seen, which every report carries.
    """

    def __init__(
        self,
        config: UploadConfig,
        log_path: Path,
        tell: Callable[[AgentReport], object],
        newest: Callable[[], int],
    ) -> None:
        self._config = config
        self._log_path = log_path
        self._tell = tell
        self._newest = newest
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._asked: dict[int, Future[Answer]] = {}
        self._parts: dict[str, PartFound] = {}
        self._child: subprocess.Popen[bytes] | None = None
        self._troubles = Troubles(self._tell_trouble)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="uploads", daemon=True)

    def begin(self) -> None:
        """Start the process and the thread that listens to it."""
        self._thread.start()

    def ask(self, errand: Errand, timeout_s: float) -> Answer:
        """Have the process run an errand and return its answer.

        Raises: Retryable[uploader-away] when it died or has not answered in time.
        """
        number = next(self._numbers)
        future: Future[Answer] = Future()
        with self._lock:
            self._asked[number] = future
            self._write(Request(number, errand))
        try:
            return future.result(timeout_s)
        except (TimeoutError, EOFError) as error:
            raise Retryable(
                "uploader-away",
                f"the uploader of this node has not answered: {type(error).__name__}.",
                delay_s=1.0,
                remedy="It is started again by itself; see uploader.log of its agent.",
            ) from error
        finally:
            with self._lock:
                self._asked.pop(number, None)

    def parts(self) -> tuple[PartHeld, ...]:
        """Return what is known to lie on this node, for a controller that knows nothing yet."""
        with self._lock:
            return tuple(self._part_held(part) for part in self._parts.values())

    def close(self) -> None:
        """End the process; what it has not sent is sent by the next one."""
        self._closed.set()
        with self._lock:
            child = self._child
            if child is not None and child.stdin is not None:
                child.stdin.close()
        if self._thread.is_alive():
            self._thread.join(_CLOSE_S)
        if child is not None and child.poll() is None:
            child.kill()
            child.wait()

    def _run(self) -> None:
        backoff = Backoff(_RESTART_FIRST_S, _RESTART_MAX_S)
        while not self._closed.is_set():
            try:
                self._live_once(backoff)
            except Exception as error:
                # Whatever it was, nobody but this thread starts the next one.
                _log.exception("the uploader cannot be kept running")
                self._troubles.tell("uploader-lost", f"it cannot be kept running: {error!r}")
            self._closed.wait(backoff.next_s())

    def _live_once(self, backoff: Backoff) -> None:
        child = self._start()
        try:
            self._listen(child, backoff)
        except BaseException:
            child.kill()
            raise
        finally:
            self._part_with(child)
        if not self._closed.is_set():
            _log.warning("the uploader ended with status %s", child.returncode)

    def _start(self) -> subprocess.Popen[bytes]:
        self._log_path.parent.mkdir(parents=True, exist_ok=True)
        with self._log_path.open("ab") as log:
            child = subprocess.Popen(
                [sys.executable, "-m", _MODULE],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, **self._config.env},
            )
        with self._lock:
            self._child = child
            self._write(self._config)
            if self._closed.is_set() and child.stdin is not None:
                # Whoever closed this object came too early to find the process.
                child.stdin.close()
        return child

    def _listen(self, child: subprocess.Popen[bytes], backoff: Backoff) -> None:
        assert child.stdout is not None
        reader = news_reader()
        with child.stdout as pipe:
            while data := os.read(pipe.fileno(), _READ_BYTES):
                for news in reader.feed(data):
                    self._take(news)
                backoff.reset()
                self._troubles.keep(())

    def _part_with(self, child: subprocess.Popen[bytes]) -> None:
        child.wait()
        with self._lock:
            self._child = None
            with contextlib.suppress(OSError):
                # What it was not told any more is of no use to the next one.
                if child.stdin is not None:
                    child.stdin.close()
            asked, self._asked = self._asked, {}
        for future in asked.values():
            future.set_exception(EOFError())

    def _write(self, message: Request | UploadConfig) -> None:
        child = self._child
        if child is None or child.stdin is None or child.stdin.closed:
            return
        try:
            child.stdin.write(encode_frame(message))
            child.stdin.flush()
        except OSError as error:
            # Its end shows on its standard output, too, where it is dealt with.
            _log.info("the uploader takes no orders: %s", error)

    def _take(self, news: News) -> None:
        if isinstance(news, Answer):
            with self._lock:
                future = self._asked.get(news.number)
            if future is not None and not future.done():
                future.set_result(news)
        elif isinstance(news, PartFound):
            with self._lock:
                self._parts[news.commit.checkpoint] = news
                while len(self._parts) > PARTS_MAX:
                    del self._parts[next(iter(self._parts))]
            self._tell(self._part_held(news))
        elif isinstance(news, Stored):
            self._tell(
                CheckpointStored(
                    attempt=self._newest(),
                    checkpoint=news.checkpoint,
                    bytes=news.bytes,
                    upload_s=news.upload_s,
                )
            )
        else:
            self._tell_trouble(news.code, news.message, news.since_s)

    def _tell_trouble(self, code: str, message: str, since_s: float) -> None:
        trouble = UploadTrouble(attempt=self._newest(), code=code, message=message, since_s=since_s)
        self._tell(trouble)

    def _part_held(self, part: PartFound) -> PartHeld:
        return PartHeld(
            attempt=self._newest(), commit=part.commit, held=part.held, num_files=part.num_files
        )
