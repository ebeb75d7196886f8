"""Reading a run spec from YAML: every mistake is answered with file, line, field and cure."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from ..logbook.errors import ConfigError, MidwatchError
from ..logbook.wire import Mesh
from .spec import RunSpec
from .spec_told import KEPT_BACK

Path_ = tuple[str | int, ...]


def load_spec(path: Path) -> RunSpec:
    """Return the validated spec in path, its trainer section filled in by the trainer's model.

    Raises: ConfigError[spec-missing | spec-not-yaml | spec-invalid], each problem on a line of its
        own as `file:line: field: what is wrong`.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            "spec-missing",
            f"cannot read the run spec {path}: {error.strerror}.",
            remedy="Name a YAML file; manifests/runs holds samples.",
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError("spec-not-yaml", f"{path} is not UTF-8 text: {error.reason}.") from error
    return parse_spec(text, str(path))


def parse_spec(text: str, origin: str) -> RunSpec:
    """Return the validated spec written in text; origin names it in errors. Raises as load_spec."""
    try:
        tree = yaml.compose(text, Loader=yaml.SafeLoader)
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{origin}:{mark.line + 1}" if mark else origin
        problem = getattr(error, "problem", None) or str(error)
        raise ConfigError("spec-not-yaml", f"{where}: not valid YAML: {problem}.") from error
    except RecursionError as error:
        raise ConfigError("spec-not-yaml", f"{origin}: nested too deeply to be a spec.") from error
    if not isinstance(data, dict):
        raise ConfigError(
            "spec-invalid", f"{origin}:1: a run spec is a mapping of fields, not {data!r:.40}."
        )
    lines = _lines_of(tree, origin)
    try:
        spec = RunSpec.model_validate(data)
    except ValidationError as error:
        raise _as_config_error(origin, lines, (), error, RunSpec) from error
    _require_told(spec, origin, lines)
    return _with_trainer(spec, origin, lines)


def spec_data(spec: RunSpec) -> dict[str, Any]:
    """Return all of the spec as plain data, secrets included: for whoever runs it, not to tell."""
    return spec.model_dump(mode="json")


def load_object(name: str) -> Any:
    """Return the object named `module:attribute`. Raises ConfigError[entry-point]."""
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            "entry-point",
            f"cannot load {name!r}: {error}.",
            remedy="Write module:attribute of something importable on every node.",
        ) from error


def _require_module(name: str) -> None:
    """Raise ConfigError[entry-point] unless there is a module to load `module:attribute` from.

    It is not imported: that is done where it runs, and may cost seconds and gigabytes.
    """
    module, _, attribute = name.partition(":")
    try:
        found = importlib.util.find_spec(module) if module and attribute else None
    except (ImportError, ValueError):
        found = None
    if found is None:
        raise ConfigError(
            "entry-point",
            f"there is no module for {name!r}.",
            remedy="Write module:attribute of something importable on every node.",
        )


def _require_told(spec: RunSpec, origin: str, lines: dict[Path_, int]) -> None:
    """Refuse what stands in a journal instead of a secret: nobody meant it as the value."""
    for name, value in spec.env.items():
        if value == KEPT_BACK:
            raise ConfigError(
                "secret-kept-back",
                f"{origin}:{_nearest_line(lines, ('env', name))}: env.{name}: this comes from a "
                "journal, which does not hold the value.",
                remedy="Write the value, or leave the variable out and set it on every node.",
            )


def _with_trainer(spec: RunSpec, origin: str, lines: dict[Path_, int]) -> RunSpec:
    points = spec.entry_points
    for name in (points.worker, points.preload, *([points.export] if points.export else [])):
        _require_module(name)
    model = load_object(spec.entry_points.config)
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        raise ConfigError(
            "entry-point",
            f"{spec.entry_points.config!r} is no pydantic model.",
            remedy="Name the model that validates the trainer section in entry_points.config.",
        )
    try:
        config = model.model_validate(spec.trainer)
    except ValidationError as error:
        raise _as_config_error(origin, lines, ("trainer",), error, model) from error
    except MidwatchError as error:
        line = lines.get(("trainer",), 1)
        raise ConfigError(
            error.code, f"{origin}:{line}: {error.message}", remedy=error.remedy
        ) from error
    # A trainer may say more than its model can: whether the model fits the mesh, for instance.
    check_mesh = getattr(importlib.import_module(model.__module__), "check_mesh", None)
    if check_mesh is not None:
        try:
            check_mesh(config, Mesh(spec.mesh.dp_shard, spec.mesh.tp))
        except MidwatchError as error:
            line = lines.get(("mesh",), 1)
            raise ConfigError(
                error.code, f"{origin}:{line}: mesh: {error.message}", remedy=error.remedy
            ) from error
    return spec.model_copy(update={"trainer": config.model_dump(mode="json")})


def _lines_of(tree: yaml.Node | None, origin: str) -> dict[Path_, int]:
    """Return the one-based line of every key and list item, by its path in the document.

    Raises: ConfigError[spec-invalid] for a key given twice, of which YAML would keep the last, and
        for a part that contains itself.
    """
    found: dict[Path_, int] = {}
    open_nodes: list[yaml.Node] = []

    def note(path: Path_, line: int) -> None:
        if path in found:
            field = ".".join(map(str, path))
            raise ConfigError(
                "spec-invalid", f"{origin}:{line}: {field}: given already on line {found[path]}"
            )
        found[path] = line

    def walk(node: yaml.Node | None, prefix: Path_) -> None:
        if any(node is known for known in open_nodes):
            line = node.start_mark.line + 1 if node is not None else 1
            raise ConfigError("spec-invalid", f"{origin}:{line}: a part that contains itself")
        if not isinstance(node, yaml.CollectionNode):
            return
        open_nodes.append(node)
        is_mapping = isinstance(node, yaml.MappingNode)
        for index, item in enumerate(node.value):
            key, value = item if is_mapping else (item, item)
            path = (*prefix, key.value if is_mapping else index)
            note(path, key.start_mark.line + 1)
            walk(value, path)
        open_nodes.pop()

    walk(tree, ())
    return found


def _as_config_error(
    origin: str,
    lines: dict[Path_, int],
    prefix: Path_,
    error: ValidationError,
    model: type[BaseModel],
) -> ConfigError:
    problems = []
    for detail in error.errors(include_url=False):
        path = (*prefix, *detail["loc"])
        line = _nearest_line(lines, path)
        field = ".".join(str(part) for part in path) or "(whole spec)"
        text = detail["msg"].removeprefix("Value error, ")
        if detail["type"] == "extra_forbidden":
            text = f"unknown field; allowed: {', '.join(_allowed(model, detail['loc'][:-1]))}"
        elif detail["type"] == "missing":
            text = "required, but not given"
        # What stands in env may be a secret, also where it is not text.
        elif detail["loc"] and path[0] != "env":
            text = f"{text} (got {detail['input']!r:.60})"
        problems.append(f"{origin}:{line}: {field}: {text}")
    return ConfigError("spec-invalid", "\n".join(problems))


def _nearest_line(lines: dict[Path_, int], path: Path_) -> int:
    # A key that YAML reads as a number stands there as its text.
    if path and (*path[:-1], str(path[-1])) in lines:
        path = (*path[:-1], str(path[-1]))
    while path and path not in lines:
        path = path[:-1]
    return lines.get(path, 1)


def _allowed(model: type[BaseModel], loc: Sequence[str | int]) -> list[str]:
    current: Any = model
    for part in loc:
        field = current.model_fields.get(part) if hasattr(current, "model_fields") else None
        annotation = field.annotation if field is not None else None
        options = getattr(annotation, "__args__", (annotation,))
        current = next((o for o in options if hasattr(o, "model_fields")), None)
        if current is None:
            return []
    return sorted(current.model_fields)
