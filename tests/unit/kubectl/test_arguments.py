"""Taking apart what was typed after `kubectl midwatch`."""

from __future__ import annotations

import pytest
from midwatch.operator.kubectl.arguments import Words, take_apart


@pytest.mark.parametrize(
    ("typed", "connection", "rest"),
    [
        ("status opt", "", "status opt"),
        ("status opt -n x -o json", "-n x", "status opt -o json"),
        ("-n x status opt", "-n x", "status opt"),
        ("status opt --namespace=x --context c", "--namespace x --context c", "status opt"),
        ("status opt -nx", "-n x", "status opt"),
        ("status opt -n=x", "-n x", "status opt"),
        ("lr opt --nodes 2", "", "lr opt --nodes 2"),
        ("lr opt --insecure-skip-tls-verify", "--insecure-skip-tls-verify", "lr opt"),
        ("notes opt -- -n x", "", "notes opt -- -n x"),
        ("status -n", "", "status -n"),
        ("status opt --as=bob --as-group g", "--as bob --as-group g", "status opt"),
    ],
)
def test_kubectls_flags_are_set_apart(typed: str, connection: str, rest: str) -> None:
    assert take_apart(typed.split()) == Words(tuple(connection.split()), tuple(rest.split()))


def test_a_reason_is_one_word_whatever_it_holds() -> None:
    words = ["lr", "opt", "--reason", "creeps since -n", "-n", "x"]
    assert take_apart(words).rest == ("lr", "opt", "--reason", "creeps since -n")
    assert take_apart(words).connection == ("-n", "x")


def test_the_value_of_a_foreign_flag_is_never_taken_for_ours() -> None:
    """`--reason -n` cannot be told from a flag: kubectl itself would read it so, too."""
    assert take_apart(["lr", "opt", "--reason=-n", "x"]).rest == ("lr", "opt", "--reason=-n", "x")
