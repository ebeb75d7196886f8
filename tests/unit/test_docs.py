"""Documents that are written from the code still say what the code says."""

from __future__ import annotations

import runpy
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def test_the_run_spec_document_is_up_to_date() -> None:
    generated = runpy.run_path(str(DOCS / "generate.py"))["render"]()
    written = (DOCS / "run-spec.md").read_text(encoding="utf-8")
    assert written == generated, "run `python docs/generate.py`"
