"""Bounds on what people may change mid-flight."""

from __future__ import annotations

from pydantic import Field, ValidationInfo, field_validator

from .spec_base import Section, at_least


class Limits(Section):
    """Bounds on what a person may change mid-flight."""

    lr_min: float = Field(default=1e-8, gt=0)
    """Smallest learning rate an intervention may set."""
    lr_max: float = Field(default=1.0, gt=0, validate_default=True)
    """Largest learning rate an intervention may set."""
    lr_factor_max: float = Field(default=100.0, gt=1)
    """Largest factor (and, inverted, the smallest) an intervention may apply."""
    grad_clip_min: float = Field(default=1e-4, gt=0)
    """Smallest gradient clip."""
    grad_clip_max: float = Field(default=1000.0, gt=0, validate_default=True)
    """Largest gradient clip."""
    loss_scale_min: float = Field(default=2.0**-20, gt=0)
    """Smallest loss scale, and smallest floor of it."""
    loss_scale_max: float = Field(default=2.0**24, gt=0, validate_default=True)
    """Largest loss scale, and largest floor of it."""
    beta1_min: float = Field(default=0.0, ge=0, lt=1)
    """Smallest decay of Adam's first moment."""
    beta1_max: float = Field(default=0.999, ge=0, lt=1, validate_default=True)
    """Largest decay of Adam's first moment."""
    beta2_min: float = Field(default=0.5, ge=0, lt=1)
    """Smallest decay of Adam's second moment."""
    beta2_max: float = Field(default=0.99999, ge=0, lt=1, validate_default=True)
    """Largest decay of Adam's second moment."""
    eps_min: float = Field(default=1e-12, gt=0)
    """Smallest eps of Adam."""
    eps_max: float = Field(default=1.0, gt=0, validate_default=True)
    """Largest eps of Adam."""
    weight_decay_min: float = Field(default=0.0, ge=0)
    """Smallest weight decay."""
    weight_decay_max: float = Field(default=1.0, ge=0, validate_default=True)
    """Largest weight decay."""
    skip_steps_max: int = Field(default=10_000, ge=1)
    """Most data steps that one request may leave out."""

    @field_validator("*")
    @classmethod
    def _bounds_in_order(cls, bound: float, info: ValidationInfo) -> float:
        lowest = (info.field_name or "").removesuffix("_max") + "_min"
        return at_least(lowest, bound, info) if lowest in info.data else bound
