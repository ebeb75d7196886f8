"""Build the stand-in NVML library and steer it while the real pynvml uses it."""

from __future__ import annotations

import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_name("nvml_stub.c")
LIBRARY = "libnvidia-ml.so.1"


def build(folder: Path) -> Path:
    """Compile the library into folder and return it."""
    library = folder / LIBRARY
    subprocess.run(
        ["gcc", "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", str(library), str(SOURCE)],
        check=True,
    )
    return library


class NvmlStub:
    """The faults a test sets; takes effect at the driver's next call."""

    def __init__(self, library: Path, control: Path) -> None:
        self._control = control
        self._lines: list[str] = []
        self._xids = 0
        self.environment = {
            "LD_LIBRARY_PATH": str(library.parent),
            "NVML_STUB_CONTROL": str(control),
        }
        self._write()

    def set(self, *lines: str) -> None:
        """Replace every fault by lines (see nvml_stub.c); XIDs already sent stay sent."""
        self._lines = list(lines)
        self._write()

    def add(self, *lines: str) -> None:
        self._lines += lines
        self._write()

    def send_xid(self, gpu: int, code: int) -> None:
        self._xids += 1
        self.add(f"xid {self._xids} {gpu} {code}")

    def _write(self) -> None:
        """Replace the file in one go, since the driver may be reading it."""
        fresh = self._control.with_suffix(".new")
        fresh.write_text("".join(f"{line}\n" for line in self._lines))
        fresh.replace(self._control)


def uuid_of(gpu: int) -> str:
    """Return the UUID that the stub gives a GPU."""
    return f"GPU-00000000-0000-0000-0000-{gpu + 1:012d}"
