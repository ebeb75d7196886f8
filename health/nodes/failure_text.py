"""Say what a failure text is about: its label, whose fault it is, what to do, and on which lines.

A text is anything a failed run leaves behind: a traceback, the end of a job log, NCCL output, a
kernel log, a scheduler's message, or several of these mixed. Every line is read by the kernel log
parser and by the rules; of all matches the one nearest to the cause decides (see failure_kinds),
and among equals the first, since a log is written in order. A node is given up only on the word of
a witness (see failure_voice): what others say of it is hearsay, whatever the words.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import msgspec

from .failure_kinds import (
    CAUSE,
    CONSEQUENCES,
    DETAIL,
    ECHO,
    HEARSAY,
    NOISE,
    PEER,
    PRECISE,
    PROGRAM,
    Rule,
)
from .failure_rules import RULES
from .failure_voice import Voice, is_cited, is_denied, read_voices, without_guesses
from .kernel_log import KernelEvent, parse_line, parse_quoted_xid
from .labels import (
    CUDA_ILLEGAL_ACCESS,
    HEALTHY_STARTUP_OVERFLOWS,
    HOST_HANG,
    LOSS_SCALE_NORMAL_DRIFT,
    UNKNOWN,
    USER_CODE,
)
from .numeric_text import read_numbers
from .verdicts import Action, Blame

# A larger text keeps its head, where the cause tends to be, and its end, where the failure is.
TEXT_CHARS_MAX = 500_000
LINE_CHARS_MAX = 2048
LINES_REPORTED_MAX = 20
# Under this an answer is a guess, and a guess never holds a run or costs a node.
GUESS_CONFIDENCE = 0.5
HEARSAY_CONFIDENCE_MAX = 0.75


class MatchedLine(msgspec.Struct, frozen=True):
    """A line that supports the label. number counts from 1."""

    number: int
    text: str


class Classification(msgspec.Struct, frozen=True):
    """What `midwatch classify FILE -o json` prints.

    confidence: 0 to 1, the chance that the label is right; 0 for "unknown".
    """

    label: str
    confidence: float
    lines: tuple[MatchedLine, ...]
    blame: Blame
    action: Action


class _Match(msgspec.Struct, frozen=True):
    """One reading of one line. is_kernel: in words that only the kernel log may say."""

    label: str
    tier: int
    confidence: float
    index: int
    column: int
    blame: Blame
    action: Action
    is_kernel: bool = False


_COMPILED = tuple((re.compile(rule.pattern, re.IGNORECASE), rule) for rule in RULES)
_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_XID_WORDS = re.compile(r"\bXid\D{0,16}\d+", re.IGNORECASE)
_PROGRESS = re.compile(
    r"\b(?:PID|pid|rank|Rank|RANK)[ =:]*(?P<who>\d+)\]?\s*[:,-]?\s*"
    r"(?P<where>(?:[Bb]efore|[Aa]fter|[Ee]nter|[Ll]eav|[Ww]ait|[Ss]tart|[Bb]egin|[Ee]nd)\w*\b.*)"
)
_NUMERIC_TIER = {HEALTHY_STARTUP_OVERFLOWS: NOISE, LOSS_SCALE_NORMAL_DRIFT: NOISE}


def classify(text: str, *, of_worker: bool = False) -> Classification:
    """Return the failure a text is about; "unknown" with confidence 0 when it shows none.

    of_worker: the text is what one worker printed: lines of the kernel log or of a scheduler in it
    are cited, since both speak elsewhere.
    Never raises on any text. The action is never "drain" or "evict" when the blame is the code's
    or the data's, nor where the program went on to end in an exception of its own.
    """
    numbers, lines = _read_lines(text)
    voices = read_voices(lines)
    witnesses = (Voice.RUNTIME,) if of_worker else (Voice.RUNTIME, Voice.AUTHORITY, Voice.KERNEL)
    said = list(_line_matches(lines, voices, witnesses))
    matches = [
        *said,
        *_raised_matches(voices, {match.index for match in said}),
        *_numeric_matches(lines),
        *_phase_matches(lines),
    ]
    if not matches:
        return Classification(UNKNOWN, 0.0, (), Blame.UNKNOWN, Action.WATCH)
    return _conclude(matches, numbers, lines, _program_ends(voices, matches))


def _read_lines(text: str) -> tuple[Sequence[int], list[str]]:
    """Return the lines to read, without colours and cut to length, and the number of each."""
    lines = text.splitlines()
    numbers: Sequence[int] = range(1, len(lines) + 1)
    if len(text) > TEXT_CHARS_MAX:
        head = _fitting(lines, TEXT_CHARS_MAX // 2)
        tail = max(head, len(lines) - _fitting(reversed(lines), TEXT_CHARS_MAX // 2))
        numbers = [*numbers[:head], *numbers[tail:]]
        lines = [*lines[:head], *lines[tail:]]
    return numbers, [_ANSI.sub("", line)[:LINE_CHARS_MAX] for line in lines]


def _fitting(lines: Iterable[str], chars: int) -> int:
    """Return how many lines fit into chars, each counted up to the length that is read."""
    count = 0
    for line in lines:
        chars -= min(len(line), LINE_CHARS_MAX) + 1
        if chars < 0:
            break
        count += 1
    return count


def _line_matches(
    lines: Sequence[str], voices: Sequence[Voice], witnesses: Sequence[Voice]
) -> Iterable[_Match]:
    for index, (line, voice) in enumerate(zip(lines, voices, strict=True)):
        if voice is Voice.QUOTED:
            continue
        event = parse_line(line)
        is_of_kernel = event is not None and voice is Voice.KERNEL and voice in witnesses
        if event is not None:
            yield from _weighed(_from_event(event, index), voice, is_of_kernel)
        knows = voice in witnesses and voice is not Voice.KERNEL
        for match, end in _phrases(line, index, is_read=event is not None):
            if is_of_kernel or not _costs_a_node(match):
                yield match
            elif not is_denied(line, match.column, end):
                is_cited_here = match.is_kernel or is_cited(line, match.column)
                yield from _weighed(match, voice, knows and not is_cited_here)


def _raised_matches(voices: Sequence[Voice], known: set[int]) -> Iterable[_Match]:
    """What stands behind a traceback is an exception by any name: the program's, by guess."""
    for index, voice in enumerate(voices):
        if voice is Voice.PROGRAM and index not in known:
            yield _Match(USER_CODE, NOISE, 0.35, index, 0, Blame.UNKNOWN, Action.RESTART)


def _phrases(line: str, index: int, is_read: bool) -> Iterable[tuple[_Match, int]]:
    """Yield what is read from words wherever they stand, and the column where these end.

    is_read: the kernel log parser has read the line, and any XID on it.
    """
    quoted = None if is_read else parse_quoted_xid(line)
    words = _XID_WORDS.search(line)
    if quoted is not None and words is not None:
        yield _from_event(quoted, index, words.start()), words.end()
    said = without_guesses(line)
    for pattern, rule in _COMPILED:
        found = pattern.search(said)
        if found is not None:
            yield _from_rule(rule, index, found.start()), found.end()


def _weighed(match: _Match, voice: Voice, is_witnessed: bool) -> Iterable[_Match]:
    """Yield what may cost a node its place, as far as the one who says it can know."""
    if is_witnessed or not _costs_a_node(match):
        yield match
    elif voice not in (Voice.REMARK, Voice.PROGRAM):
        yield msgspec.structs.replace(
            match,
            tier=min(match.tier, HEARSAY),
            confidence=min(match.confidence, HEARSAY_CONFIDENCE_MAX),
            action=Action.RESTART,
        )


def _costs_a_node(match: _Match) -> bool:
    return match.action in (Action.DRAIN, Action.EVICT)


def _from_rule(rule: Rule, index: int, column: int) -> _Match:
    usual = CONSEQUENCES[rule.label]
    return _Match(
        label=rule.label,
        tier=rule.tier,
        confidence=rule.confidence,
        index=index,
        column=column,
        blame=rule.blame or usual.blame,
        action=rule.action or usual.action,
    )


def _from_event(event: KernelEvent, index: int, column: int = 0) -> _Match:
    """Place a kernel event by what it asks for: an eviction is a cause, a note hardly one."""
    tier = {Action.EVICT: CAUSE, Action.DRAIN: CAUSE, Action.WATCH: DETAIL}.get(event.action, ECHO)
    confidence = 0.97 if event.action is Action.EVICT else 0.85
    if event.label == CUDA_ILLEGAL_ACCESS and event.action is Action.WATCH:
        tier, confidence = PRECISE, 0.7
    if event.component in ("oom_host", "storage"):
        tier = CAUSE if event.component == "oom_host" else PRECISE
    if event.label == HOST_HANG and event.action is Action.WATCH:
        tier = PEER
    if event.label in (UNKNOWN, USER_CODE):
        tier, confidence = min(tier, PEER), 0.4
    return _Match(
        label=event.label,
        tier=tier,
        confidence=confidence,
        index=index,
        column=column,
        blame=event.blame,
        action=event.action,
        is_kernel=True,
    )


def _numeric_matches(lines: Sequence[str]) -> Iterable[_Match]:
    reading = read_numbers(lines)
    if reading is None:
        return
    usual = CONSEQUENCES[reading.label]
    tier = _NUMERIC_TIER.get(reading.label, PROGRAM)
    for index in reading.lines:
        yield _Match(reading.label, tier, reading.confidence, index, 0, usual.blame, usual.action)


def _phase_matches(lines: Sequence[str]) -> Iterable[_Match]:
    """Progress marks of several processes that stopped at different places: a hang, by guess."""
    marks = [(index, _PROGRESS.search(line)) for index, line in enumerate(lines)]
    found = [(index, mark) for index, mark in marks if mark is not None]
    who = {mark["who"] for _, mark in found}
    where = {mark["where"].strip() for _, mark in found}
    if len(who) < 3 or len(where) < 2:
        return
    usual = CONSEQUENCES[HOST_HANG]
    for index, _ in found:
        yield _Match(HOST_HANG, NOISE, 0.4, index, 0, usual.blame, usual.action)


def _conclude(
    matches: Sequence[_Match], numbers: Sequence[int], lines: Sequence[str], program_ends: int
) -> Classification:
    best = min(
        matches, key=lambda match: (-match.tier, match.index, match.column, -match.confidence)
    )
    same = [match for match in matches if match.label == best.label]
    rivals = {m.label for m in matches if m.tier == best.tier} - {best.label}
    support = len({match.index for match in same})
    last_index = len(lines) if best.is_kernel else max(match.index for match in same)
    confidence = best.confidence + 0.01 * min(support - 1, 3) - 0.1 * min(len(rivals), 3)
    confidence = round(min(max(confidence, 0.05), 0.99), 3)
    return Classification(
        label=best.label,
        confidence=confidence,
        lines=_quote(same, numbers, lines),
        blame=best.blame,
        action=_safe_action(best, confidence, last_index, program_ends),
    )


def _quote(
    matches: Sequence[_Match], numbers: Sequence[int], lines: Sequence[str]
) -> tuple[MatchedLine, ...]:
    indices = sorted({match.index for match in matches})[:LINES_REPORTED_MAX]
    return tuple(MatchedLine(numbers[index], lines[index]) for index in indices)


def _safe_action(best: _Match, confidence: float, last_index: int, program_ends: int) -> Action:
    """Hold back what the evidence does not carry. last_index: the last line that supports best."""
    is_guess = confidence < GUESS_CONFIDENCE
    if _costs_a_node(best) and (
        is_guess or best.blame in (Blame.CODE, Blame.DATA) or program_ends > last_index
    ):
        # The program printed those words itself, or lived on after them.
        return Action.RESTART
    if best.action is Action.STOP and is_guess:
        return Action.RESTART
    return best.action


def _program_ends(voices: Sequence[Voice], matches: Sequence[_Match]) -> int:
    """Return the last line that is an exception of the program and nothing else, -1 for none."""
    others = {match.index for match in matches if match.label != USER_CODE}
    ends = (
        index
        for index, voice in enumerate(voices)
        if voice is Voice.PROGRAM and index not in others
    )
    return max(ends, default=-1)
