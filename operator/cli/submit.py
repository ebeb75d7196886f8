"""midwatch submit: hand a run to a Ray cluster as a job, from a machine outside of it."""

from __future__ import annotations

import os
import secrets
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from ...logbook.errors import ConfigError, Fatal
from ..spec import RunSpec
from ..spec_file import load_spec
from .output import Output, OutputOption, err_console, print_json

DASHBOARD = "http://127.0.0.1:8265"
SPEC_NAME = "midwatch-run.yaml"


def submit(
    spec_path: Annotated[Path, typer.Argument(metavar="SPEC", help="Run spec, YAML.")],
    address: Annotated[
        str,
        typer.Option(
            help="URL of the cluster's dashboard; http:// may be left out.",
            envvar="RAY_API_SERVER_ADDRESS",
        ),
    ] = DASHBOARD,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Show what it prints, to its end.")
    ] = False,
    token_file: Annotated[
        Path | None, typer.Option(help="Cluster's token; RAY_AUTH_TOKEN(_PATH) without.")
    ] = None,
    ca_file: Annotated[Path | None, typer.Option(help="Whom to trust, for https; PEM.")] = None,
    runtime_env: Annotated[
        Path | None, typer.Option(help="Ray runtime environment of the job, YAML.")
    ] = None,
    job_id: Annotated[
        str | None, typer.Option("--id", help="Name of the job; one used before is refused.")
    ] = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Hand a run to a Ray cluster as a job; it goes on without this machine."""
    spec = load_spec(spec_path)
    _require_shared(spec, spec_path)
    url = _dashboard_url(address)
    environment = _runtime_env(runtime_env)
    token = _token(token_file)
    # Ray takes a second to import: a spec that cannot work is told before.
    from ..runtime.ray_jobs import JobOrder, JobServer, follow_job, submit_job

    server = JobServer(url, token, str(ca_file) if ca_file is not None else "")
    with tempfile.TemporaryDirectory(prefix="midwatch-submit-") as folder:
        (Path(folder) / SPEC_NAME).write_bytes(spec_path.read_bytes())
        order = JobOrder(
            id=job_id or f"{spec.name}-{secrets.token_hex(4)}",
            entrypoint=f"midwatch run {SPEC_NAME}",
            folder=folder,
            runtime_env=environment,
            metadata={"midwatch-run": spec.name},
        )
        job = submit_job(server, order)
    if not follow:
        _answer({"job": job, "run": spec.name, "run_dir": spec.run_dir}, job, spec, output)
        return
    err_console.print(f"{job} is on the cluster; Ctrl-C leaves it there", highlight=False)
    # The answer in JSON stands alone on standard output.
    log = sys.stderr if output is Output.JSON else sys.stdout
    outcome = follow_job(server, job, lambda text: print(text, end="", file=log, flush=True))
    if output is Output.JSON:
        print_json(outcome)
    if not outcome.is_success:
        raise Fatal("job-failed", f"{job} ended as {outcome.status}: {outcome.message}")


def _dashboard_url(address: str) -> str:
    """Return the URL behind an address. Ray takes one without a scheme for its own protocol's."""
    scheme, has_scheme, _ = address.partition("://")
    if not has_scheme:
        address = f"http://{address}"
    elif scheme not in ("http", "https"):
        raise ConfigError(
            "address-invalid",
            f"{address} is no URL of a dashboard: its scheme is {scheme}, not http or https.",
            remedy="Jobs are handed in at the dashboard, such as http://HOST:8265.",
        )
    return address.rstrip("/")


def _require_shared(spec: RunSpec, path: Path) -> None:
    """The job's own folder is swept away with the job: nothing may be kept there."""
    data = spec.trainer.get("data")
    folder = data.get("dir") if isinstance(data, dict) else None
    for field, value in (("run_dir", spec.run_dir), ("trainer.data.dir", folder)):
        if isinstance(value, str) and not value.startswith("/"):
            raise ConfigError(
                "path-not-absolute",
                f"{path}: {field} is {value!r}, which would lie in the job's own folder.",
                remedy="Give an absolute path on storage that all nodes of the cluster share.",
            )


def _runtime_env(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError("runtime-env-invalid", f"cannot read {path}: {error}.") from error
    if not isinstance(data, dict):
        raise ConfigError("runtime-env-invalid", f"{path} is not a mapping of fields.")
    if "working_dir" in data:
        raise ConfigError(
            "runtime-env-invalid",
            f"{path} sets working_dir, in which the run spec is sent.",
            remedy="Send code by py_modules, or put it into the image.",
        )
    return data


def _token(path: Path | None) -> str:
    """The cluster's token from where Ray's own tools look for it, "" without one."""
    if path is None and (token := os.environ.get("RAY_AUTH_TOKEN", "").strip()):
        return token
    default = os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token"
    source = path or Path(default)
    try:
        return source.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        if path is None and not os.environ.get("RAY_AUTH_TOKEN_PATH"):
            return ""
        raise ConfigError("token-unreadable", f"cannot read {source}: {error}.") from error


def _answer(value: object, job: str, spec: RunSpec, output: Output) -> None:
    if output is Output.JSON:
        print_json(value)
        return
    print(job)
    err_console.print(
        f"{spec.name} is on the cluster as job {job}; its folder is {spec.run_dir}",
        soft_wrap=True,
        highlight=False,
    )
