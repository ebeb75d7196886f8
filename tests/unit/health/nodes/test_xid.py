"""The XID catalogue: actions, blame, sub-codes and what the command line prints."""

from __future__ import annotations

import msgspec
import pytest
from midwatch.health.nodes.nvlink5 import advise, parse_detail
from midwatch.health.nodes.verdicts import Action, Blame
from midwatch.health.nodes.xid import (
    RECOVERY_ACTIONS,
    answer,
    explain,
    explain_sxid,
    recovery_action,
)
from midwatch.health.nodes.xid_table import WHY, XIDS
from midwatch.tests.support.recorded import recorded_rows

NODE_ACTIONS = {Action.IGNORE, Action.WATCH, Action.DRAIN, Action.EVICT}


def test_every_row_is_complete_and_known_once() -> None:
    codes = [row[0] for row in XIDS]
    assert len(codes) == len(set(codes)) == 176
    for code, name, action, blame, _, marks in XIDS:
        fact = explain(code)
        assert (fact.name, fact.action, fact.blame) == (name, action, blame)
        assert action in NODE_ACTIONS
        assert name
        assert marks
        assert fact.source


def test_a_code_blamed_on_the_program_never_costs_a_node() -> None:
    blamed = [explain(row[0]) for row in XIDS if row[3] is Blame.CODE]
    assert {13, 31, 43, 45, 68, 69, 109} <= {fact.code for fact in blamed}
    assert all(fact.action in (Action.IGNORE, Action.WATCH) for fact in blamed)


@pytest.mark.parametrize("code", [48, 64, 74, 79, 95, 119, 120, 140, 143, 158, 173])
def test_a_gpu_that_cannot_be_trusted_is_evicted(code: int) -> None:
    assert explain(code).action is Action.EVICT


@pytest.mark.parametrize("code", [63, 94, 156])
def test_contained_damage_leaves_at_the_next_restart(code: int) -> None:
    assert explain(code).action is Action.DRAIN


@pytest.mark.parametrize("code", [0, -1, 500, 99999])
def test_an_unknown_code_is_watched_and_says_so(code: int) -> None:
    fact = explain(code)
    assert fact.action is Action.WATCH
    assert not fact.known
    assert "unknown" in fact.name


def _severity(advice: str) -> int | None:
    """How grave a source's advice is: 0 nothing, 1 the program, 3 reset or reboot."""
    if advice in ("unused", "none") or "workflow" in advice or "contact" in advice:
        return None
    if "reset" in advice or "reboot" in advice or "restart-bm" in advice:
        return 3
    return 0 if advice.startswith(("ignore", "info")) else 1


def test_where_the_sources_disagree_the_row_says_why() -> None:
    silent = []
    for code, _, action, _, _, marks in XIDS:
        grades = [_severity(mark.partition(":")[2]) for mark in marks.split()]
        known = [grade for grade in grades if grade is not None]
        torn = bool(known) and max(known) - min(known) >= 2
        milder = action in (Action.IGNORE, Action.WATCH) and known and min(known) >= 3
        harsher = action is Action.EVICT and known and max(known) < 3
        if (torn or milder or harsher) and code not in WHY:
            silent.append(code)
    assert silent == []


def test_the_command_prints_exactly_four_fields() -> None:
    printed = msgspec.json.decode(msgspec.json.encode(answer(explain(79))))
    assert list(printed) == ["code", "name", "action", "source"]
    assert printed["code"] == 79
    assert printed["action"] == "evict"
    assert "NVIDIA" in printed["source"]


def test_an_aftermath_takes_on_the_code_it_names() -> None:
    fact = explain(45, "pid=1, name=python3, Ch 00000001 caused by previous Xid 149")
    assert fact.code == 45
    assert fact.action is Action.EVICT
    assert fact.label == "nvlink"
    assert explain(45, "pid=1, name=python3, Ch 00000001").action is Action.IGNORE


@pytest.mark.parametrize(
    ("detail", "action"),
    [
        ("GPU recovery action changed from 0x0 (None) to 0x4 (Drain and Reset)", Action.DRAIN),
        ("GPU recovery action changed from 0x4 (x) to 0x1 (GPU Reset Required)", Action.EVICT),
        ("GPU recovery action changed from 0x1 (x) to 0x0 (None)", Action.IGNORE),
        ("GPU recovery action changed", Action.WATCH),
    ],
)
def test_a_recovery_action_is_read_from_its_line(detail: str, action: Action) -> None:
    assert explain(154, detail).action is action


def test_an_unheard_of_recovery_action_is_watched() -> None:
    assert recovery_action(len(RECOVERY_ACTIONS)) is Action.WATCH
    assert recovery_action(-1) is Action.WATCH


@pytest.mark.parametrize(
    ("detail", "action"),
    [
        ("RLW_REMAP Nonfatal XC0 i0 Link 00 (0x00000004 0x00000100 0x0)", Action.IGNORE),
        ("RLW_REMAP Fatal XC0 i0 Link 00 (0x00000004 0x00000140 0x0)", Action.EVICT),
        ("NETIR_LINK_EVT Fatal XC0 i0 Link 15 (0x0215e5c6 0x00000000)", Action.EVICT),
        ("NETIR_LINK_EVT Fatal XC0 i0 Link 15 (0x026001c6 0x00000000)", Action.WATCH),
        ("SOMETHING_NEW Fatal XC0 i0 Link 15 (0x0 0x0)", Action.EVICT),
        ("SOMETHING_NEW Nonfatal XC0 i0 Link 15 (0x0 0x0)", Action.WATCH),
        ("NETIR Fatal XC0 i0 Link -1 (0x000fe406", Action.EVICT),
    ],
)
def test_an_nvlink5_code_follows_its_sub_code(detail: str, action: Action) -> None:
    code = 149 if detail.startswith("NETIR") else 145
    assert explain(code, detail).action is action


@pytest.mark.parametrize(
    ("code", "fatal", "action"),
    [
        (20034, True, Action.EVICT),
        (20034, False, Action.WATCH),
        (20034, None, Action.DRAIN),
        (23001, None, Action.EVICT),
        (11012, None, Action.WATCH),
        (10005, True, Action.IGNORE),
        (99999, True, Action.EVICT),
        (99999, None, Action.WATCH),
    ],
)
def test_an_sxid_is_as_bad_as_its_line_says(code: int, fatal: bool | None, action: Action) -> None:
    assert explain_sxid(code, fatal).action is action


def test_every_recorded_nvlink5_rule_is_followed() -> None:
    for row in recorded_rows("xid_catalogue", "nvidia_nvlink5_xid_rules.csv"):
        word = int(row["IntrinfoPatternV2"].replace("-", "0"), 2)
        for unit in row["Unit"].split("/"):
            detail = parse_detail(
                f"{unit} Fatal XC0 i0 Link 01 (0x{word:08x} {row['ErrorStatus']})"
            )
            assert detail is not None
            asked = advise(detail)
            if row["Resolution"] == "RESET_GPU":
                assert asked is Action.EVICT, row
            elif row["Resolution"] == "IGNORE":
                assert asked is not Action.EVICT, row


def test_every_recorded_code_is_known_and_the_ignored_ones_cost_no_node() -> None:
    for name in ("nvidia_xid_catalogue.csv", "gpud_xid_actions.csv"):
        for row in recorded_rows("xid_catalogue", name):
            assert explain(int(row["xid"])).known, row
    for row in recorded_rows("xid_catalogue", "k8s_device_plugin_ignored_xids.csv"):
        assert explain(int(row["xid"])).action in (Action.IGNORE, Action.WATCH)
    for row in recorded_rows("xid_catalogue", "gpud_nvswitch_sxid.csv"):
        assert explain_sxid(int(row["sxid"])).known
