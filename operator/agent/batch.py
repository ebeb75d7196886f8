"""Gathers what workers say into a few reports a second, and thins out timings for a slow reader."""

from __future__ import annotations

from ...logbook.wire import RankSample, WorkerMessage
from .outbox import Outbox
from .reports import RankSamples, WorkerMessages

_MESSAGES_MAX = 512
_SAMPLES_MAX = 2048


class SampleBuffer:
    """Rank samples that wait for the reader, at most samples_max of them.

    When full it doubles its stride and keeps only steps divisible by it. Whole steps go, never
    single ranks of a step, because stragglers show only in the comparison of all ranks.
    """

    def __init__(self, samples_max: int = _SAMPLES_MAX) -> None:
        self.stride = 1
        self.dropped_total = 0
        self._samples_max = samples_max
        self._samples: list[RankSample] = []

    def __len__(self) -> int:
        return len(self._samples)

    def add(self, sample: RankSample) -> None:
        """Keep a sample, or count it as dropped."""
        if sample.step % self.stride:
            self.dropped_total += 1
            return
        self._samples.append(sample)
        while len(self._samples) > self._samples_max:
            self._thin()

    def _thin(self) -> None:
        self.stride *= 2
        kept = [sample for sample in self._samples if sample.step % self.stride == 0]
        # Samples that all carry one step (a broken trainer) cannot be thinned by step.
        if len(kept) == len(self._samples):
            kept = kept[len(kept) // 2 :]
        self.dropped_total += len(self._samples) - len(kept)
        self._samples = kept

    def take(self) -> tuple[tuple[RankSample, ...], int]:
        """Return all samples with their stride, and begin again at stride 1."""
        samples, stride = tuple(self._samples), self.stride
        self._samples, self.stride = [], 1
        return samples, stride


class MessageBatch:
    """Messages of one attempt at a time, on their way into the outbox."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._attempt = -1
        self._messages: list[tuple[int, WorkerMessage]] = []
        self._samples = SampleBuffer()

    @property
    def samples_dropped_total(self) -> int:
        return self._samples.dropped_total

    def add(self, attempt: int, rank: int, message: WorkerMessage) -> None:
        """Take one message; it leaves with the next flush."""
        if attempt != self._attempt:
            self.flush()
            self._flush_samples()
            self._attempt = attempt
        if isinstance(message, RankSample):
            self._samples.add(message)
            return
        self._messages.append((rank, message))
        if len(self._messages) >= _MESSAGES_MAX:
            self.flush_messages()

    def flush(self) -> None:
        """Push what has gathered; samples only when the reader has taken the previous ones."""
        self.flush_messages()
        if not self._outbox.has_untaken_samples:
            self._flush_samples()

    def flush_messages(self) -> None:
        """Push what was said; timings, which nobody waits for, gather on."""
        if self._messages:
            batch, self._messages = tuple(self._messages), []
            self._outbox.push(WorkerMessages(attempt=self._attempt, batch=batch))

    def _flush_samples(self) -> None:
        if len(self._samples):
            batch, stride = self._samples.take()
            dropped = self._samples.dropped_total
            self._outbox.push(
                RankSamples(
                    attempt=self._attempt, batch=batch, stride=stride, dropped_total=dropped
                )
            )
