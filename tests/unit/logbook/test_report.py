"""The report of a night: its figures are those of the record, and a browser shows it offline."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from midwatch.logbook import events as ev
from midwatch.logbook.chronicle import Chronicle, read_chronicle
from midwatch.logbook.clock import clock_text
from midwatch.logbook.document import Block, Figure, Heading, Table, Text, to_html, to_markdown
from midwatch.logbook.failures import failures_by_fault
from midwatch.logbook.ledger import Cause
from midwatch.logbook.plots import plot_loss
from midwatch.logbook.reader import read
from midwatch.logbook.report import render_report
from midwatch.logbook.summary import summarize
from midwatch.operator.cli.main import main
from midwatch.operator.simulation.training import Fragility, Physics
from midwatch.tests.sim.night import DiskJournal, Night
from midwatch.tests.support.builders import make_spec
from midwatch.tests.support.synthetic_run import SyntheticRun
from PIL import Image

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
ACCOUNTING = {"gpu_idle_watts": 60, "pue": 1.1, "grid_g_per_kwh": 231, "price_per_gpu_hour": 2.5}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A night with a death, a divergence, a hang, a lost node and a person."""
    folder = tmp_path_factory.mktemp("run")
    journal = DiskJournal(folder / "journal")
    spec = make_spec(trainer={"steps": 300}, nodes={"gpu_watts": 400}, accounting=ACCOUNTING)
    night = Night(spec, physics=Physics(fragile=(Fragility(80, 150, 0.95),)), journal=journal)
    night.run_to_step(43)
    night.world.kill_worker(1)
    night.run_to_step(60)
    night.ask("lr-factor", 1.05)
    night.run_to_step(200)
    night.world.stop_worker(2)
    night.run_to_step(240)
    night.world.kill_agent("node-1")
    night.run_to_end()
    journal.close()
    return folder


@pytest.fixture(scope="module")
def chronicle(run: Path) -> Chronicle:
    return read_chronicle(read(run / "journal", ev.Event))


@pytest.fixture(scope="module")
def blocks(chronicle: Chronicle) -> Sequence[Block]:
    return render_report(chronicle, 0.0)[1]


def table_under(blocks: Sequence[Block], heading: str) -> Table:
    at = next(i for i, b in enumerate(blocks) if isinstance(b, Heading) and b.text == heading)
    return next(b for b in blocks[at:] if isinstance(b, Table))


def test_the_curve_is_what_stands_and_what_was_left_is_kept(chronicle: Chronicle) -> None:
    assert list(chronicle.curves.steps) == list(range(1, 301))
    gone = [step for curves in chronicle.left for step in curves.steps]
    assert len(gone) == chronicle.state.steps_total - 300
    assert summarize(chronicle.state, 0.0).steps_lost == len(gone)


def test_every_attempt_is_there_with_its_end(chronicle: Chronicle, blocks: Sequence[Block]) -> None:
    rows = table_under(blocks, "Attempts").rows
    assert [row[0] for row in rows] == [str(n) for n in range(1, chronicle.state.num_attempts + 1)]
    assert "worker-killed (inc-0001)" in rows[0][-1]
    assert "completed at step 300" in rows[-1][-1]
    assert sum(row.steps for row in chronicle.attempts) == chronicle.state.steps_total


def test_the_ledger_in_the_report_adds_up(chronicle: Chronicle, blocks: Sequence[Block]) -> None:
    state = chronicle.state
    assert state.ended_s is not None
    totals = chronicle.ledger.totals(state.ended_s)
    assert math.isclose(sum(totals.values()), (state.ended_s - state.submitted_s) * 6)
    for cause in (Cause.PRODUCTIVE, Cause.RECOMPUTE, Cause.DETECT, Cause.PROVISION, Cause.LOAD):
        assert totals[cause] > 0.0, cause
    rows = table_under(blocks, "Where the GPU time went").rows
    assert rows[-1][1] == f"{sum(totals.values()) / 3600:,.4g}"


def test_productive_time_is_close_to_what_ettr_says(chronicle: Chronicle) -> None:
    summary = summarize(chronicle.state, 0.0)
    assert chronicle.state.ended_s is not None
    totals = chronicle.ledger.totals(chronicle.state.ended_s)
    assert totals[Cause.PRODUCTIVE] / 4 == pytest.approx(summary.productive_s, rel=0.1)


def test_failures_are_counted_by_fault_and_none_costs_twice(chronicle: Chronicle) -> None:
    summary = summarize(chronicle.state, 0.0)
    rows = failures_by_fault(chronicle.state, summary)
    by_fault = {row.fault: row for row in rows}
    assert {"worker-killed", "hang", "node-lost"} <= set(by_fault)
    assert sum(row.count for row in rows) == len(chronicle.state.incidents)
    assert sum(row.steps_lost for row in rows) == pytest.approx(summary.steps_lost, abs=2)
    hang = by_fault["hang"]
    assert hang.mttd_s is not None
    assert hang.mttd_s >= 5.0
    # What nobody planned has a time to detect as well, and the headline counts all of them.
    numeric = [i for i in chronicle.state.incidents.values() if i.draft.is_numeric]
    assert numeric
    times_s = dict(zip(chronicle.curves.steps, chronicle.curves.times_s, strict=True))
    for left in chronicle.left:
        times_s.update(zip(left.steps, left.times_s, strict=True))
    figures = {row.id: row for row in summary.incidents}
    for incident in numeric:
        draft = incident.draft
        assert draft.onset_step < draft.step
        waited_s = draft.seen_s - times_s[draft.onset_step]
        assert figures[draft.id].detect_s == pytest.approx(waited_s, abs=1e-6)
    answered = [row.detect_s for row in summary.incidents if row.detect_s is not None]
    assert len(answered) >= 4
    assert summary.mttd_s == pytest.approx(sum(answered) / len(answered))
    assert hang.mttr_s is not None
    assert hang.mtbf_s == pytest.approx(summary.wall_s / hang.count)


def test_interventions_energy_and_nodes_are_told(blocks: Sequence[Block]) -> None:
    asked = table_under(blocks, "Interventions").rows
    assert any(row[1] == "ann" and row[2] == "lr-factor 1.05" for row in asked)
    energy = table_under(blocks, "Energy and carbon").rows
    assert energy[0][0] == "declared, all GPUs"
    assert float(energy[0][2]) > float(energy[1][2]) > 0.0
    nodes = table_under(blocks, "Lemon nodes").rows
    assert any(row[0] == "node-1" for row in nodes)
    texts = [block.text for block in blocks if isinstance(block, Text)]
    assert any("completed at step 300" in text for text in texts)


def test_a_run_that_fell_silent_says_since_when_and_books_nothing_as_trained(
    small_run: SyntheticRun,
) -> None:
    chronicle = read_chronicle(read(small_run.folder / "journal", ev.Event))
    now_s = small_run.now_s + 3 * 86400.0
    title, blocks = render_report(chronicle, now_s)
    text = to_markdown(title, blocks, "figures")
    assert f"it was last heard of at {clock_text(small_run.now_s)[:19]}, 3 d 0 h ago" in text
    assert table_under(blocks, "Attempts").rows[-1][-1] == "not heard of any more"
    shares = {row[0]: float(row[2].rstrip("%")) for row in
              table_under(blocks, "Where the GPU time went").rows}  # fmt: skip
    # The spare is idle all the time.
    assert shares["unheard"] == pytest.approx(80.0 * (1 - (2460 + 120) / (3 * 86400)), abs=1.0)
    assert shares["productive"] < 2.0
    alive = to_markdown(*render_report(chronicle, now_s, now_s), "figures")
    assert "last heard of" not in alive


def test_perplexity_is_drawn_where_it_was_measured() -> None:
    loss = [1.0, 2.0], [4.0, 3.0]
    assert "perplexity" not in plot_loss(loss, [], ([], []), [])
    assert "validation perplexity" in plot_loss(loss, [], ([1.0, 2.0], [55.0, 20.0]), [])


def test_an_empty_journal_makes_a_report_all_the_same() -> None:
    title, blocks = render_report(read_chronicle([]), 0.0)
    assert "nothing was submitted" in to_markdown(title, blocks, "figures")
    assert to_html(title, blocks).endswith("</html>\n")


def call(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["midwatch", *words])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


def test_the_command_writes_html_markdown_and_figures(
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfdbinary: pytest.CaptureFixture[bytes],
) -> None:
    out = tmp_path / "out"
    assert call(monkeypatch, "report", str(run), "--out", str(out), "-o", "json") == 0
    told = json.loads(capfdbinary.readouterr().out)
    assert set(told["gpu_seconds"]) == {cause.value for cause in Cause}
    markdown = (out / "report.md").read_text()
    linked = re.findall(r"\((figures/[^)]+)\)", markdown)
    assert {"figures/lr.svg", "figures/loss.svg", "figures/attempts.svg"} <= set(linked)
    assert all((out / name).is_file() for name in linked)
    assert Path(told["html"]).read_text().count("<figure") == len(linked)


def test_a_folder_that_cannot_be_written_is_said_so(
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfdbinary: pytest.CaptureFixture[bytes],
) -> None:
    (tmp_path / "file").write_text("in the way")
    assert call(monkeypatch, "report", str(run), "--out", str(tmp_path / "file")) == 2
    assert b"report-not-written" in capfdbinary.readouterr().err


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_a_browser_without_a_network_shows_it(
    chronicle: Chronicle, blocks: Sequence[Block], tmp_path: Path
) -> None:
    page, picture = tmp_path / "report.html", tmp_path / "report.png"
    page.write_text(to_html("Run night", blocks))
    flags = [
        "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
        "--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr",
        "--window-size=1000,2600", "--hide-scrollbars",
    ]  # fmt: skip
    assert CHROMIUM is not None
    shown = subprocess.run(
        [CHROMIUM, *flags, f"--screenshot={picture}", page.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    refused = [line for line in shown.stderr.splitlines() if "CONSOLE" in line]
    assert not refused, "the page reached for something, or broke its own policy"
    image = Image.open(picture).convert("RGB")
    assert image.size == (1000, 2600)
    seen = image.getcolors(maxcolors=1 << 20)
    assert seen is not None
    drawn = {colour: count for count, colour in seen}
    for name, colour in (("productive", (45, 164, 78)), ("recompute", (251, 143, 68))):
        assert drawn.get(colour, 0) > 200, f"no {name} bar was drawn"
    assert drawn.get((9, 105, 218), 0) > 200, "no curve was drawn"
    dumped = subprocess.run(
        [CHROMIUM, *flags, "--dump-dom", page.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    figures = sum(isinstance(block, Figure) for block in blocks)
    assert dumped.stdout.count("<figure") == figures == 4
    assert chronicle.state.run in dumped.stdout
