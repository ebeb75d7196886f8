"""The table of what signs of other tools mean, as a file that replaces the built-in one."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from ...health.nodes.evidence import EvidenceRule
from ...logbook.decoding import prepared
from ...logbook.errors import ConfigError


def load_rules(path: Path) -> tuple[EvidenceRule, ...]:
    """Return the rules in a YAML list, each with source, key, value, kind, action and told_by.

    Raises: ConfigError[evidence-file-invalid].
    """
    try:
        rules = msgspec.yaml.decode(path.read_bytes(), type=prepared(tuple[EvidenceRule, ...]))
        for rule in rules:
            re.compile(rule.key)
            re.compile(rule.value)
    except (OSError, msgspec.MsgspecError, re.error) as error:
        raise ConfigError(
            "evidence-file-invalid",
            f"{path} is no table of evidence: {error}.",
            remedy="Each rule needs source, key, value, kind, action and told_by.",
        ) from error
    return rules
