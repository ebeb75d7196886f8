"""A warm process is safe to fork from: no thread, no group, no mesh, the random state untouched."""

import json
import subprocess
import sys
from typing import Any

import pytest

LOOK = """
import gc, json, os, sys
from midwatch.trainer.warmup import preload
is_light = "torch" not in sys.modules
preload(json.loads(sys.argv[1]))
import torch, torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh
after = torch.rand(4).tolist()
torch.manual_seed(torch.initial_seed())
gc.unfreeze()
print(json.dumps({
    "is_light": is_light,
    "tasks": len(os.listdir("/proc/self/task")),
    "has_group": dist.is_initialized(),
    "meshes": sum(type(known) is DeviceMesh for known in gc.get_objects()),
    "same_random": after == torch.rand(4).tolist(),
    "has_trainer": "midwatch.trainer.loop" in sys.modules,
}))
"""


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_preload_leaves_nothing_behind(trainer: dict[str, Any], precision: str) -> None:
    section = {**trainer, "precision": precision, "activation_checkpointing": precision == "bf16"}
    ended = subprocess.run(
        [sys.executable, "-c", LOOK, json.dumps(section)], capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout) == {
        "is_light": True,
        "tasks": 1,
        "has_group": False,
        "meshes": 0,
        "same_random": True,
        "has_trainer": True,
    }


def test_a_preload_that_would_leave_a_thread_is_an_error() -> None:
    program = """
import threading
threading.Thread(target=threading.Event().wait, daemon=True).start()
from midwatch.trainer.warmup import preload
try:
    preload({"preset": "nano"})
except RuntimeError as error:
    print(error)
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "threads" in ended.stdout
