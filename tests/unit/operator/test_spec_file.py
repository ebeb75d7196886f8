"""A wrong spec is answered with file, line, field and what is allowed, before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest
from midwatch.logbook.errors import ConfigError
from midwatch.operator.faults import load_faults
from midwatch.operator.spec_file import load_spec, parse_spec, spec_data
from midwatch.operator.spec_told import KEPT_BACK

GOOD = """\
name: night
mesh: {dp_shard: 2, tp: 2}
nodes: {ranks_per_node: 2, spares: 1}
trainer:
  preset: nano
  steps: 50
"""
SAMPLES = Path(__file__).parents[3] / "manifests" / "runs"


def refused(text: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        parse_spec(text, "run.yaml")
    return caught.value


def test_a_good_spec_is_filled_in_from_the_preset() -> None:
    spec = parse_spec(GOOD, "run.yaml")
    assert spec.world_size == 4
    assert spec.num_nodes == 2
    assert spec.trainer["steps"] == 50
    assert spec.trainer["model"]["layers"] == 2


def test_the_same_text_is_the_same_spec() -> None:
    one, again = parse_spec(GOOD, "a"), parse_spec(GOOD, "b")
    other = parse_spec(GOOD.replace("steps: 50", "steps: 51"), "a")
    assert spec_data(one) == spec_data(again) != spec_data(other)


@pytest.mark.parametrize(
    "env", ["{API_KEY: 77665544}", "{API_KEY: [hunter22]}", "API_KEY=hunter22", "[hunter22]"]
)
def test_a_mistake_in_env_is_told_without_its_value(env: str) -> None:
    error = refused(f"{GOOD}env: {env}\n")
    assert error.code == "spec-invalid"
    assert "run.yaml:7: env" in error.message
    assert "hunter22" not in error.message
    assert "77665544" not in error.message


def test_what_a_journal_shows_of_a_secret_is_not_taken_for_one() -> None:
    error = refused(f"{GOOD}env:\n  MODE: fast\n  API_KEY: {KEPT_BACK}\n")
    assert error.code == "secret-kept-back"
    assert "run.yaml:9: env.API_KEY" in error.message


@pytest.mark.parametrize(
    ("change", "line", "field", "says"),
    [
        (("ranks_per_node: 2", "ranks_per_nodes: 2"), 3, "nodes.ranks_per_nodes", "ranks_per_node"),
        (("tp: 2}", "tp: 0}"), 2, "mesh.tp", "greater than or equal to 1"),
        (("name: night", "name: Night!"), 1, "name", "pattern"),
        (("preset: nano", "preset: gigantic"), 5, "trainer.preset", "175B"),
        (("steps: 50", "stepss: 50"), 6, "trainer.stepss", "steps"),
        (("spares: 1", "spares: many"), 3, "nodes.spares", "integer"),
        (("ranks_per_node: 2", "ranks_per_node: 3"), 1, "(whole spec)", "does not divide"),
    ],
)
def test_a_mistake_names_line_field_and_what_is_allowed(
    change: tuple[str, str], line: int, field: str, says: str
) -> None:
    error = refused(GOOD.replace(*change))
    assert error.code == "spec-invalid"
    assert f"run.yaml:{line}: {field}" in error.message
    assert says in error.message


@pytest.mark.parametrize(
    ("added", "line", "field", "says"),
    [
        ("name: other", 7, "name", "given already on line 1"),
        ("restart: {settle_s: 2, settle_s: 3}", 7, "restart.settle_s", "given already on line 7"),
        ("restart: {hang_min_s: 40, hang_max_s: 5}", 7, "restart.hang_max_s", "hang_min_s"),
        ("restart: {hang_min_s: 4000}", 7, "restart.hang_max_s", "hang_min_s"),
        ("limits: {lr_min: 0.1, lr_max: 0.01}", 7, "limits.lr_max", "lr_min"),
        ("limits: {lr_max: .nan}", 7, "limits.lr_max", "greater than 0"),
        ("numeric: {lr_ladder: [0.9, 1.1]}", 7, "numeric.lr_ladder.1", "less than 1"),
        ("detectors: {crep: {mode: act}}", 7, "detectors.crep", "creep"),
        ("env: {A: 1}", 7, "env.A", "string"),
        (
            "checkpoints: {store: {endpoint_url: 'minio.example:9000'}}",
            7,
            "checkpoints.store.endpoint_url",
            "https://HOST",
        ),
        ("7: seven", 7, "7", "Keys should be strings"),
    ],
)
def test_an_addition_that_cannot_be_meant_is_refused(
    added: str, line: int, field: str, says: str
) -> None:
    error = refused(f"{GOOD}{added}\n")
    assert error.code == "spec-invalid"
    assert f"run.yaml:{line}: {field}: " in error.message
    assert says in error.message


def test_a_spec_that_contains_itself_is_refused() -> None:
    assert "contains itself" in refused("mesh: &mesh {dp_shard: *mesh}").message


@pytest.mark.parametrize("depth", [2_000, 20_000])
def test_a_spec_nested_without_end_is_refused(depth: int) -> None:
    assert refused("mesh: " + "[" * depth + "]" * depth).code in ("spec-not-yaml", "spec-invalid")


@pytest.mark.parametrize(
    "entry",
    ["config: 'os:path'", "config: 'json:dumps'", "worker: 'no.such:main'", "preload: nothing"],
)
def test_an_entry_point_that_cannot_be_meant_is_refused(entry: str) -> None:
    assert refused(f"{GOOD}entry_points: {{{entry}}}\n").code == "entry-point"


def test_every_mistake_is_told_at_once() -> None:
    error = refused(GOOD.replace("tp: 2}", "tp: 0}").replace("spares: 1", "spares: -1"))
    assert error.message.count("run.yaml:") == 2


def test_a_mesh_that_does_not_fit_the_model_is_refused_with_the_reason() -> None:
    text = GOOD.replace("tp: 2}", "tp: 3}").replace("ranks_per_node: 2", "ranks_per_node: 3")
    error = refused(text)
    assert error.code == "mesh-does-not-fit"
    assert "run.yaml:2: mesh" in error.message


@pytest.mark.parametrize("text", ["mesh: [", "\tname: x", "- a\n- b", "just words", ""])
def test_what_is_no_mapping_is_refused(text: str) -> None:
    assert refused(text).code in ("spec-not-yaml", "spec-invalid")


def test_an_entry_point_that_cannot_be_loaded_is_named() -> None:
    error = refused(GOOD + "entry_points: {config: 'nowhere.at_all:Config'}\n")
    assert error.code == "entry-point"
    assert "nowhere.at_all" in error.message


def test_a_missing_file_and_one_that_is_not_text(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_spec(tmp_path / "none.yaml")
    assert caught.value.code == "spec-missing"
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError) as caught:
        load_spec(tmp_path / "bytes.yaml")
    assert caught.value.code == "spec-not-yaml"


@pytest.mark.parametrize("path", sorted(SAMPLES.glob("*.yaml")), ids=lambda path: path.name)
def test_the_samples_are_valid(path: Path) -> None:
    if path.name.endswith("-faults.yaml"):
        assert load_faults(path).faults
    else:
        assert load_spec(path).name


def test_a_broken_fault_plan_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "faults.yaml"
    path.write_text("faults: [{at_step: 0, fault: meteor}]\n")
    with pytest.raises(ConfigError) as caught:
        load_faults(path)
    assert caught.value.code == "faults-invalid"
    assert "meteor" in caught.value.message
