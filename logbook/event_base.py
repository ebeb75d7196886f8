"""What every event of the journal shares."""

from __future__ import annotations

import msgspec


class EventBase(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="kind"):
    """What every event shares: how it stands on a line of the journal."""
