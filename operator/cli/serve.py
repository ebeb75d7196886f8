"""midwatch serve: the HTTP API of any run, by hand; a living one or one that is long over."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ...logbook.errors import ConfigError
from ..spec_api import ApiSpec
from .output import Output, OutputOption, RunArgument, print_json
from .places import folder_of
from .runs import load_state


def serve(
    run: RunArgument = None,
    host: Annotated[str | None, typer.Option(help="Address to listen at.")] = None,
    port: Annotated[int, typer.Option(help="Port; 0: any free one.", min=0, max=65_535)] = 0,
    tls_cert: Annotated[
        Path | None, typer.Option(help="Serve https with this certificate, PEM.")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Key of the certificate.")] = None,
    no_auth: Annotated[
        bool, typer.Option("--no-auth", help="Ask for no token: who reaches it may do everything.")
    ] = False,
    output: OutputOption = Output.TEXT,
) -> None:
    """Serve a run over HTTP until Ctrl-C, as its spec says but for the port and what is given."""
    if (tls_cert is None) != (tls_key is None):
        raise ConfigError("usage", "give --tls-cert and --tls-key together.")
    folder = folder_of(run)
    spec = ApiSpec.model_validate(load_state(folder).spec.get("api", {}))
    changes: dict[str, Any] = {"port": port}
    if host is not None:
        changes["host"] = host
    if tls_cert is not None and tls_key is not None:
        files = {"cert": str(tls_cert.absolute()), "key": str(tls_key.absolute())}
        changes["tls"] = files
    if no_auth:
        changes |= {"auth": "off", "tokens": None}
    # Here alone: a web server takes its time to load, and no other command needs it.
    from ..api.endpoint import Endpoint
    from ..api.order import ServeOrder
    from ..api.server import serve as serve_run
    from ..api.tokens import Role, token_path

    data = {**spec.model_dump(mode="json"), **changes}
    order = ServeOrder(str(folder), data)
    logging.basicConfig(format="midwatch: %(message)s", level=logging.WARNING, stream=sys.stderr)

    def tell(endpoint: Endpoint) -> None:
        made_up = data["auth"] != "off" and data["tokens"] is None
        tokens = {role.value: str(token_path(folder, role)) for role in Role} if made_up else {}
        if output is Output.JSON:
            print_json({"url": endpoint.url, "pid": endpoint.pid, "tokens": tokens})
            return
        print(f"{folder.name} is served at {endpoint.url}", flush=True)
        for role, path in tokens.items():
            print(f"    {role} token: {path}", flush=True)

    serve_run(order, tell)
