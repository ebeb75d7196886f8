"""Settings for every test: a private Ray is asked for a token, which ray reads when imported."""

from __future__ import annotations

import os

from midwatch.operator.runtime.local_ray import set_local_environment

os.environ.pop("RAY_ADDRESS", None)
set_local_environment()
