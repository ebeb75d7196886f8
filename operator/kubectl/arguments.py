"""What was typed after `kubectl midwatch`, taken apart: kubectl's own flags may stand anywhere."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

# kubectl's global flags with a value; it passes them on to plugins and reads none of them for them.
VALUED = frozenset(
    {
        "-n",
        "--namespace",
        "--context",
        "--cluster",
        "--user",
        "--kubeconfig",
        "--as",
        "--as-group",
        "--as-uid",
        "--server",
        "--certificate-authority",
        "--client-certificate",
        "--client-key",
        "--tls-server-name",
        "--request-timeout",
        "--cache-dir",
    }
)
SWITCHES = frozenset({"--insecure-skip-tls-verify"})
NAMESPACE_FLAGS = ("-n", "--namespace")


class Words(msgspec.Struct, frozen=True):
    """connection: kubectl's own flags, as it takes them. rest: everything else, in order."""

    connection: tuple[str, ...] = ()
    rest: tuple[str, ...] = ()


def take_apart(words: Sequence[str]) -> Words:
    """Return the words with kubectl's own flags set apart; a flag without its value stays a word.

    Nothing behind `--` is looked at.
    """
    connection: list[str] = []
    rest: list[str] = []
    left = list(words)
    while left:
        word = left.pop(0)
        flag, equals, value = word.partition("=")
        if word == "--":
            rest += [word, *left]
            break
        if flag in VALUED and equals:
            connection += [flag, value]
        elif word in VALUED and left:
            connection += [word, left.pop(0)]
        elif word.startswith("-n") and len(word) > 2 and not word.startswith("--"):
            connection += ["-n", word[2:].removeprefix("=")]
        elif flag in SWITCHES:
            connection.append(word)
        else:
            rest.append(word)
    return Words(tuple(connection), tuple(rest))
