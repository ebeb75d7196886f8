"""Write docs/run-spec.md from the models themselves: python docs/generate.py

A test compares the file with what this would write, so the two cannot drift apart.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

from midwatch.operator.spec import RunSpec
from midwatch.trainer.config import TrainConfig
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

TARGET = Path(__file__).with_name("run-spec.md")
INTRO = """# The run spec

A run is one YAML file. It is checked whole before anything starts; every mistake is answered with
file, line, field and what is allowed. Written from the models by `python docs/generate.py`.
"""


def render() -> str:
    """Return the whole document."""
    parts = [INTRO, *_section("Top level", "", RunSpec)]
    trainer = "The trainer's own section. A preset supplies defaults; what is written wins.\n"
    parts += [f"# The `trainer` section\n\n{trainer}", *_section("trainer", "trainer", TrainConfig)]
    return "\n".join(parts)


def _section(title: str, path: str, model: type[BaseModel]) -> list[str]:
    intro = (model.__doc__ or "").strip()
    lines = [
        f"## {title}\n\n{intro}\n",
        "| field | type | default | meaning |",
        "|---|---|---|---|",
    ]
    nested: list[str] = []
    for name, field in model.model_fields.items():
        full = f"{path}.{name}" if path else name
        inner = _model_in(field.annotation)
        shape = "section" if inner is not None else _type_text(field.annotation)
        meaning = " ".join((field.description or "").split())
        lines.append(f"| `{name}` | {shape} | {_default_text(field)} | {meaning} |")
        if inner is not None:
            nested += _section(f"`{full}`", full, inner)
    return ["\n".join(lines) + "\n", *nested]


def _model_in(annotation: Any) -> type[BaseModel] | None:
    options = (annotation, *get_args(annotation))
    return next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None)


def _type_text(annotation: Any) -> str:
    if isinstance(annotation, type) and not get_args(annotation):
        return annotation.__name__
    text = str(annotation).replace("typing.", "").replace("NoneType", "None")
    return f"`{_without_metadata(text)}`".replace("|", "\\|")


def _without_metadata(text: str) -> str:
    while "Annotated[" in text:
        start = text.index("Annotated[")
        depth, end = 0, start
        for end in range(start, len(text)):
            depth += {"[": 1, "]": -1}.get(text[end], 0)
            if text[end] == "]" and depth == 0:
                break
        inner = text[start + len("Annotated[") : end]
        text = text[:start] + inner.split(",")[0] + text[end + 1 :]
    return text


def _default_text(field: Any) -> str:
    default = field.default
    if field.is_required():
        return "required"
    if default is PydanticUndefined or isinstance(default, BaseModel):
        return ""
    return f"`{default}`" if default != "" else '`""`'


if __name__ == "__main__":
    TARGET.write_text(render(), encoding="utf-8")
