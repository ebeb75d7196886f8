"""Who may do what: a bearer token for each role, compared in constant time and never told."""

from __future__ import annotations

import hmac
import logging
import os
import secrets
from enum import StrEnum
from hashlib import sha256
from pathlib import Path

from ...logbook.errors import ConfigError, MidwatchError
from ..secret_value import read_secret
from ..spec_api import ApiSpec, ApiTokens
from ..spec_outward import SecretName
from .refusal import Refusal

MIN_CHARS = 16
FOLDER = "api"
_log = logging.getLogger(__name__)


class Role(StrEnum):
    """viewer reads; operator reads and asks for changes."""

    VIEWER = "viewer"
    OPERATOR = "operator"


class Tokens:
    """The tokens of one run. Their files are read anew for each request, so they may be renewed.

    Raises: ConfigError[secret-missing, secret-invalid, token-too-short, tokens-alike,
        tokens-not-written].
    """

    def __init__(self, spec: ApiSpec, run_dir: Path) -> None:
        self._names: ApiTokens | None = None
        if spec.auth != "off":
            self._names = spec.tokens or _made_up(run_dir / FOLDER)
            _check(*_read(self._names))

    def role_of(self, authorization: str | None) -> Role:
        """Return the role of whoever shows this Authorization header.

        Raises: Refusal[token-missing, token-wrong, tokens-unreadable].
        """
        if self._names is None:
            return Role.OPERATOR
        scheme, _, shown = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not shown.strip():
            raise Refusal(
                401,
                "token-missing",
                "this run is shown to those with a token only.",
                remedy="Send `Authorization: Bearer TOKEN`.",
            )
        try:
            viewer, operator = _read(self._names)
        except MidwatchError as error:
            # Where the tokens lie is no business of whoever has none.
            _log.error("nobody can be let in: %s", error)
            raise Refusal(
                503, "tokens-unreadable", "the tokens of this run cannot be read now."
            ) from None
        # Both are always compared, over digests of one length.
        digest = _digest(shown.strip())
        is_viewer = hmac.compare_digest(digest, _digest(viewer))
        is_operator = hmac.compare_digest(digest, _digest(operator))
        if is_viewer or is_operator:
            return Role.VIEWER if is_viewer else Role.OPERATOR
        raise Refusal(
            401,
            "token-wrong",
            "the token is not one of this run's.",
            remedy="It may have been renewed: read it again from where the run's tokens lie.",
        )


def token_path(run_dir: Path, role: Role) -> Path:
    """Return where the made-up token of a role lies."""
    return run_dir / FOLDER / f"{role}-token"


def _check(viewer: str, operator: str) -> None:
    shortest = min(len(viewer), len(operator))
    if shortest < MIN_CHARS:
        raise ConfigError(
            "token-too-short",
            f"a token of the API has {shortest} characters, of at least {MIN_CHARS}.",
            remedy="`openssl rand -hex 32` makes a good one.",
        )
    if viewer == operator:
        raise ConfigError(
            "tokens-alike",
            "viewers and operators of the API have the same token.",
            remedy="Give each role a token of its own.",
        )


def _read(names: ApiTokens) -> tuple[str, str]:
    return read_secret(names.viewer), read_secret(names.operator)


def _digest(token: str) -> bytes:
    return sha256(token.encode()).digest()


def _made_up(folder: Path) -> ApiTokens:
    """Return the tokens in folder, made up where there are none yet."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        names = {role: _keep(folder.absolute() / f"{role}-token") for role in Role}
    except OSError as error:
        raise ConfigError(
            "tokens-not-written",
            f"tokens cannot be laid into {folder}: {error.strerror}.",
            remedy="Make it writable, or name tokens of your own in api.tokens.",
        ) from error
    return ApiTokens(viewer=names[Role.VIEWER], operator=names[Role.OPERATOR])


def _keep(path: Path) -> SecretName:
    """Write a new token to path unless one is there; it is whole as soon as it has its name."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(fd, "w") as file:
        file.write(secrets.token_urlsafe(32) + "\n")
    try:
        os.link(draft, path)
    except FileExistsError:
        pass
    finally:
        draft.unlink()
    return SecretName(file=str(path))
