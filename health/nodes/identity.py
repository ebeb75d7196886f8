"""Read what a machine is, below its host name: the hardware UUID that outlives a reinstallation."""

from __future__ import annotations

from pathlib import Path

_HARDWARE, _INSTALLED = "sys/class/dmi/id/product_uuid", "etc/machine-id"
# In a container machine-id is the image's, the same on every node: all would count as one machine.
_CONTAINER_SIGNS = (
    ".dockerenv",
    "run/.containerenv",
    "var/run/secrets/kubernetes.io/serviceaccount",
)
# Boards whose maker never set a UUID: all zeros, all ones, or this sample of the specification.
_UNSET = frozenset({"", "0", "f"})
_SAMPLE = "03000200-0400-0500-0006-000700080009"


def read_machine_uuid(root: Path = Path("/")) -> str:
    """Return the machine's UUID in lower case, "" where none can be read.

    The DMI UUID belongs to the hardware but takes root to read; machine-id belongs to the
    installed system and stands in for it, but not in a container.
    """
    is_container = any((root / sign).exists() for sign in _CONTAINER_SIGNS)
    for source in (_HARDWARE,) if is_container else (_HARDWARE, _INSTALLED):
        try:
            text = (root / source).read_text("ascii").strip().lower()
        except (OSError, UnicodeDecodeError):
            continue
        digits = "".join(sorted(set(text.replace("-", ""))))
        if digits not in _UNSET and text != _SAMPLE:
            return text
    return ""
