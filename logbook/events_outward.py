"""What happens to the ways into a run; part of events.py, through which everybody reads them."""

from __future__ import annotations

from .event_base import EventBase


class ApiServed(EventBase, frozen=True, tag="api-served"):
    """The run is served over HTTP at url by process pid, taken over from an earlier controller
    where is_taken_over."""

    url: str
    pid: int
    is_taken_over: bool = False


class ApiFailed(EventBase, frozen=True, tag="api-failed"):
    """The run is not served over HTTP any more, or not yet; it goes on, and so do the tries."""

    code: str
    message: str
