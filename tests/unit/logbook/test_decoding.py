"""Types that several threads decode into for the first time at once."""

from __future__ import annotations

import subprocess
import sys

import msgspec
import pytest
from midwatch.logbook.decoding import prepared

# A process of its own, since what is shown to be gone ends one: without `prepared` it dies with
# SIGSEGV in the first few of these types.
_MEET_AT_ONCE = """
import sys, threading, types
import msgspec
from midwatch.logbook.decoding import prepared

sys.setswitchinterval(1e-7)
INNER = "".join(f"    f{i}: int | str\\n" for i in range(30))
OUTER = "".join(f"    g{i}: tuple[Inner, ...] = ()\\n" for i in range(20))
SOURCE = f'''
from __future__ import annotations
import msgspec
class Inner(msgspec.Struct):
{INNER}
class Outer(msgspec.Struct):
{OUTER}
'''
data = msgspec.json.encode({"g7": [{f"f{i}": i for i in range(30)}]})
read = []
for number in range(100):
    module = types.ModuleType(f"fresh_{number}")
    sys.modules[module.__name__] = module
    exec(SOURCE, module.__dict__)
    together = threading.Barrier(4)

    def meet(kind):
        together.wait()
        whole = msgspec.json.decode(data, type=prepared(kind))
        read.append([getattr(whole.g7[0], f"f{i}") for i in range(30)] == list(range(30)))

    threads = [threading.Thread(target=meet, args=(module.Outer,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
print(len(read), all(read))
"""


def test_threads_that_meet_a_type_at_once_all_read_it() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", _MEET_AT_ONCE], capture_output=True, text=True, timeout=120
    )
    assert (ended.returncode, ended.stdout.split()) == (0, ["400", "True"]), ended.stderr


def test_a_type_comes_back_as_it_is() -> None:
    kind = tuple[int, ...]
    assert prepared(kind) is kind
    assert msgspec.json.decode(b"[1]", type=prepared(kind)) == (1,)


def test_a_type_that_nothing_can_be_decoded_into_is_refused_every_time() -> None:
    for _ in range(2):
        with pytest.raises(TypeError):
            prepared(dict[int, str] | dict[str, str])
