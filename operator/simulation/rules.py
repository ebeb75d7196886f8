"""The trainer's own rules, by name: schedule, commands, save interval, loss scaler, sampler.

The operator starts the trainer by name and never imports it, and so does the simulated world: what
a command or an overflow does to a run is what the trainer's code says, not a copy of it.
"""

from __future__ import annotations

from typing import Any

from ..spec_file import load_object

_TRAINER = "midwatch.trainer"

TrainConfig: Any = load_object(f"{_TRAINER}.config:TrainConfig")
Mailbox: Any = load_object(f"{_TRAINER}.control:Mailbox")
plan_effect: Any = load_object(f"{_TRAINER}.effects:plan_effect")
plan_due: Any = load_object(f"{_TRAINER}.effects:plan_due")
due_commands: Any = load_object(f"{_TRAINER}.effects:due_commands")
is_save_due: Any = load_object(f"{_TRAINER}.effects:is_save_due")
save_interval_steps: Any = load_object(f"{_TRAINER}.effects:save_interval_steps")
lr_at: Any = load_object(f"{_TRAINER}.schedule:lr_at")
data_step_for: Any = load_object(f"{_TRAINER}.data.sampler:data_step_for")
ScalerState: Any = load_object(f"{_TRAINER}.loss_scaler:ScalerState")
advance: Any = load_object(f"{_TRAINER}.loss_scaler:advance")
