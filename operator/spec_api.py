"""The section of the run spec that says whether a run is served over HTTP, where, and to whom."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from .spec_base import Section
from .spec_outward import SecretName


class TlsSpec(Section):
    """Certificate and key, PEM files on the controller's node; taken up anew when they change."""

    cert: str = Field(min_length=1, max_length=1024)
    """Absolute path of the certificate, its chain behind it."""
    key: str = Field(min_length=1, max_length=1024)
    """Absolute path of its key."""

    @field_validator("cert", "key")
    @classmethod
    def _is_absolute(cls, path: str) -> str:
        if not path.startswith("/"):
            raise ValueError("must be an absolute path")
        return path


class ApiTokens(Section):
    """The secrets that callers show. Each at least 16 characters; nobody shares a token."""

    viewer: SecretName
    """Of those who may read."""
    operator: SecretName
    """Of those who may also ask for changes."""


class ApiSpec(Section):
    """The HTTP API of the run, served by a process of its own beside the controller."""

    enabled: bool = False
    """Serve this run, from its controller's node. Off, as is all that lets others in: whoever can
    read the run's folder needs no server, and `midwatch serve` starts one at any time."""
    host: str = Field(default="127.0.0.1", min_length=1, max_length=253)
    """Address to listen at; 0.0.0.0 for every interface, which without TLS shows tokens to the
    network and is warned of."""
    port: int = Field(default=0, ge=0, le=65_535)
    """Port; 0: any free one, kept while the run lasts and told in RUN_DIR/api/endpoint.json."""
    tls: TlsSpec | None = None
    """Serve https."""
    auth: Literal["token", "off"] = "token"
    """token: every caller shows one. off: whoever reaches the port may do everything."""
    tokens: ApiTokens | None = None
    """Where the tokens are found; null: one for each role is made up and laid into RUN_DIR/api,
    readable by its owner alone."""

    linger_s: float = Field(default=600.0, ge=0, le=30 * 86_400)
    """How long a run that is over is still served, for those who look only now and then; it ends
    with the controller's node in any case."""

    @model_validator(mode="after")
    def _tokens_are_asked_for(self) -> ApiSpec:
        if self.auth == "off" and self.tokens is not None:
            raise ValueError("auth is off, so nobody would be asked for tokens; give only one")
        return self
