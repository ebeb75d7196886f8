"""Secrets by name: read where they are needed, when they are needed, and never told to anybody."""

from __future__ import annotations

import os
from pathlib import Path

from ..logbook.errors import ConfigError
from .spec_api import ApiSpec
from .spec_outward import NotifySpec, SecretName

MAX_BYTES = 8192


def read_secret(name: SecretName) -> str:
    """Return the secret that a name stands for. Errors say the name and never the value.

    Raises: ConfigError[secret-missing, secret-invalid].
    """
    where = f"environment variable {name.env}" if name.env else f"file {name.file}"
    value = os.environ.get(name.env, "") if name.env else _content(name.file, where)
    value = value.strip()
    if not value:
        raise ConfigError(
            "secret-missing",
            f"the {where} holds no secret on the controller's node.",
            remedy="Set it where the controller runs.",
        )
    if not value.isascii() or not value.isprintable():
        raise ConfigError(
            "secret-invalid", f"the {where} holds characters that no URL and no token has."
        )
    return value


def require_secrets(notify: NotifySpec, api: ApiSpec) -> None:
    """Read every secret that a spec names and forget it again. Raises: as read_secret."""
    tokens = api.tokens if api.enabled else None
    of_api = (tokens.viewer, tokens.operator) if tokens is not None else ()
    for name in (notify.webhook, notify.webhook_token, notify.heartbeat, *of_api):
        if name is not None:
            read_secret(name)


def _content(path: str, where: str) -> str:
    try:
        with Path(path).open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError("secret-missing", f"the {where}: {error.strerror}.") from error
    if len(data) > MAX_BYTES:
        raise ConfigError("secret-invalid", f"the {where} is larger than {MAX_BYTES} bytes.")
    return data.decode("utf-8", errors="replace")
