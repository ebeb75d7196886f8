"""The shape of the code: who may import whom, what the core may touch, how long things may be."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = {
    "logbook": frozenset[str](),
    "health": frozenset({"logbook"}),
    "checkpoints": frozenset({"logbook"}),
    "trainer": frozenset({"checkpoints", "logbook"}),
    "operator": frozenset({"checkpoints", "health", "logbook"}),
}
# (package, where it may be imported): everything else starts it by name or not at all.
FENCED = {
    "torch": ("trainer/", "checkpoints/dcp"),
    "ray": ("operator/runtime/",),
    "kubernetes": ("operator/k8s/",),
    "kopf": ("operator/k8s/",),
    "textual": ("logbook/tui/",),
    "fastapi": ("operator/api/",),
    "starlette": ("operator/api/",),
    "uvicorn": ("operator/api/",),
    "boto3": ("checkpoints/",),
    "botocore": ("checkpoints/",),
    "pynvml": ("health/nodes/",),
    "prometheus_client": ("logbook/metrics.py", "operator/exporter.py"),
    "tensorboardX": ("logbook/tensorboard.py",),
}
PURE = ("logbook/fold", "logbook/state.py", "operator/policy/", "health/numerics/")
IMPURE = frozenset({"time", "random", "os", "datetime", "secrets", "socket", "subprocess"})
MAX_LINES, MAX_TEST_LINES, MAX_FUNCTION_LINES = 400, 600, 70


def tracked() -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return [name for name in listed.stdout.split() if (ROOT / name).exists()]


FILES = tracked()
SOURCES = [name for name in FILES if name.split("/")[0] in ROOMS]


def tree_of(name: str) -> ast.Module:
    return ast.parse((ROOT / name).read_text(encoding="utf-8"))


def imports_of(name: str) -> Iterator[str]:
    """Every imported module as an absolute name; relative ones resolved from the file's room."""
    package = ["midwatch", *Path(name).parent.parts]
    for node in ast.walk(tree_of(name)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            yield ".".join([*base, *([node.module] if node.module else [])])


@pytest.mark.parametrize("name", SOURCES)
def test_imports_run_downward(name: str) -> None:
    room = name.split("/")[0]
    for module in imports_of(name):
        parts = module.split(".")
        if parts[0] == "midwatch" and len(parts) > 1 and parts[1] in ROOMS:
            assert parts[1] == room or parts[1] in ROOMS[room], f"{name} imports {module}"
        allowed = FENCED.get(parts[0])
        if allowed is not None:
            assert name.startswith(allowed), f"{name} imports {parts[0]}"


@pytest.mark.parametrize("name", [n for n in SOURCES if n.startswith(PURE)])
def test_the_core_touches_no_clock_and_no_chance(name: str) -> None:
    touched = {module.split(".")[0] for module in imports_of(name)} & IMPURE
    assert not touched, f"{name} imports {touched}"


@pytest.mark.parametrize("name", [n for n in SOURCES if n.startswith(PURE)])
def test_the_core_iterates_no_sets(name: str) -> None:
    # The order of a set depends on the hash seed: a fold over one is not deterministic.
    for node in ast.walk(tree_of(name)):
        loops = [node.iter] if isinstance(node, (ast.For, ast.comprehension)) else []
        for loop in loops:
            is_call = isinstance(loop, ast.Call) and isinstance(loop.func, ast.Name)
            bad = isinstance(loop, (ast.Set, ast.SetComp)) or (
                is_call and loop.func.id in ("set", "frozenset")
            )
            assert not bad, f"{name}:{loop.lineno} iterates a set"


def test_files_and_functions_stay_small() -> None:
    long: list[str] = []
    for name in FILES:
        lines = len((ROOT / name).read_text(encoding="utf-8").splitlines())
        limit = MAX_TEST_LINES if name.startswith("tests/") else MAX_LINES
        if lines > limit:
            long.append(f"{name}: {lines} lines, limit {limit}")
        for node in ast.walk(tree_of(name)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                length = (node.end_lineno or 0) - node.lineno + 1
                if length > MAX_FUNCTION_LINES:
                    long.append(f"{name}:{node.lineno} {node.name}: {length} lines")
    assert not long


def decoded_types(name: str) -> Iterator[ast.expr]:
    """Every type that a call of msgspec decodes into."""
    for node in ast.walk(tree_of(name)):
        called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
        if not isinstance(node, ast.Call) or not called.startswith("msgspec."):
            continue
        yield from (keyword.value for keyword in node.keywords if keyword.arg == "type")
        place = {"Decoder": 0, "convert": 1}.get(called.split(".")[-1])
        if place is not None:
            yield from node.args[place : place + 1]


def test_no_type_is_decoded_into_before_one_thread_has_looked_into_it_alone() -> None:
    """Two threads that meet a type at once end the process: logbook/decoding.py has why."""
    bare = [
        f"{name}:{kind.lineno} {ast.unparse(kind)}"
        for name in SOURCES
        if name != "logbook/decoding.py"
        for kind in decoded_types(name)
        if not (isinstance(kind, ast.Call) and ast.unparse(kind.func) == "prepared")
    ]
    assert not bare


def test_only_the_root_is_a_regular_package() -> None:
    # operator/__init__.py would shadow the standard library wherever the root is on the path.
    assert [name for name in FILES if name.endswith("__init__.py")] == ["__init__.py"]


def test_nothing_is_left_open() -> None:
    words = ("FIX" + "ME", "TO" + "DO", "XX" + "X")
    found = [
        f"{name}: {word}"
        for name in FILES
        for word in words
        if word in (ROOT / name).read_text(encoding="utf-8")
    ]
    assert not found
