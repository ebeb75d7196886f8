"""What Ray's job server answers in, for whoever asks it over HTTP: plain text, or a traceback."""

from __future__ import annotations

NO_AGENT = "No available agent"
"""What it says, with status 500, while it finds no node to start a job on."""


def gist(text: str) -> str:
    """Return the line of an answer that says what is wrong, "" where none does.

    Of a traceback that is the last one: Ray puts one into another, and a full stop behind both.
    """
    lines = [line.strip() for line in text.splitlines() if any(map(str.isalnum, line))]
    if not lines:
        return ""
    return lines[-1] if "Traceback (most recent call last)" in text else lines[0]
