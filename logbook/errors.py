"""The exception tree of the whole project, rooted here so that every room may raise it.

    MidwatchError
    |-- ConfigError      the user wrote something that cannot work; nothing was started
    |-- IntegrityError   bytes are not what they were when they were written
    |-- Retryable        the outside world failed in a way that may pass; carries delay_s
    `-- Fatal            the outside world failed in a way that will not pass by itself

Every error carries a stable kebab-case code (tests and callers match on it, never on prose) and one
sentence for a person: what failed, observed against allowed, and what to do.
"""

from __future__ import annotations


class MidwatchError(Exception):
    """Root of every error a user may see.

    code:   stable kebab-case identifier, e.g. "mesh-does-not-fit".
    remedy: what the reader should do next; printed after the message.
    """

    def __init__(self, code: str, message: str, *, remedy: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        tail = f" {self.remedy}" if self.remedy else ""
        return f"[{self.code}] {self.message}{tail}"


class ConfigError(MidwatchError):
    """The spec, a flag or an environment value cannot work; nothing has been started."""


class IntegrityError(MidwatchError):
    """Stored bytes fail their checksum, size or structure."""


class Retryable(MidwatchError):
    """A foreign failure that may pass; try again after delay_s seconds."""

    def __init__(self, code: str, message: str, *, delay_s: float, remedy: str = "") -> None:
        super().__init__(code, message, remedy=remedy)
        self.delay_s = delay_s


class Fatal(MidwatchError):
    """A foreign failure that will not pass by itself."""


_OUT_OF_REACH = ("[store-", "[credentials-", "[bucket-", "[uploader-")


def is_out_of_reach(told: str) -> bool:
    """Whether an error, as text, is about the way to stored bytes and not about the bytes.

    What is out of reach may be sound: nobody may call it damaged for that.
    """
    return any(sign in told for sign in _OUT_OF_REACH)
