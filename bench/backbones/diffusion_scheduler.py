"""The schedulers of variance-preserving diffusion models: their noise levels, and what the network predicts.

A pipeline's scheduler names the levels on which its network was trained, and a sampler. Only the levels, the spacing of
timesteps and where the first and last state lie are taken from it; the transition is a run's own `sampler.kernel`.
Held-out images are those of diffusers with DDIM at eta 0 in its place. DDPMScheduler ends at sigma 0: there it is DDIM
with set_alpha_to_one.
"""

import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from bench.backbones.scheduler_files import fields_of, refuse, require, scheduler_config
from bench.errors import UsageError
from bench.sampler.diffusion_levels import DiffusionLevels

DDIM, EULER, DPM = ("DDIMScheduler", "PNDMScheduler"), "EulerDiscreteScheduler", "DPMSolverMultistepScheduler"
ANCESTRAL = "EulerAncestralDiscreteScheduler"
KINDS = (*DDIM, EULER, ANCESTRAL, DPM, "DDPMScheduler")
"""The classes of diffusers that are followed."""
SPACING = {EULER: "linspace", ANCESTRAL: "linspace", DPM: "linspace"}
"""Default spacing of timesteps; leading in the other classes."""
ALPHA_TO_ONE = {"DDIMScheduler": True, "PNDMScheduler": False}
"""Default of set_alpha_to_one in the classes that have it."""
CLIPPING = ("DDIMScheduler", "DDPMScheduler")
"""Classes that clip the predicted image unless clip_sample is false."""
NOT_FOLLOWED = (
    "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas", "use_flow_sigmas",
    "trained_betas", "thresholding", "sigma_min", "sigma_max",
)  # fmt: skip
"""Options that change the levels or the step, and that are not implemented here."""
FOLLOWED: dict[str, dict[str, tuple[Any, ...]]] = {
    EULER: {"interpolation_type": ("linear",), "final_sigmas_type": ("zero",), "rescale_betas_zero_snr": (False,)},
    ANCESTRAL: {"rescale_betas_zero_snr": (False,)},
    DPM: {
        "algorithm_type": ("dpmsolver", "dpmsolver++"), "solver_type": ("midpoint",),
        "rescale_betas_zero_snr": (False,), "lambda_min_clipped": (-math.inf,),
    },
}  # fmt: skip
"""Class -> option of that class -> the values that are followed."""


class DiffusionFields(BaseModel):
    """The fields of a scheduler_config.json that are read, with diffusers' defaults."""

    model_config = ConfigDict(strict=True)
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "linear"
    beta_start: Annotated[float, Field(gt=0, lt=1)] = 0.0001
    beta_end: Annotated[float, Field(gt=0, lt=1)] = 0.02
    prediction_type: Literal["epsilon", "v_prediction", "sample"] = "epsilon"
    timestep_spacing: Literal["leading", "trailing", "linspace"] = "leading"
    steps_offset: Literal[0, 1] = 0
    set_alpha_to_one: bool = True
    rescale_betas_zero_snr: bool = False
    final_sigmas_type: Literal["zero", "sigma_min"] = "zero"
    timestep_type: Literal["discrete"] = "discrete"
    kind: str = DDIM[0]
    """The scheduler's class."""

    @property
    def table(self) -> str:
        """The table of sigmas that the scheduler would build."""
        if self.kind == DPM and self.timestep_spacing != "trailing":
            return f"dpm_{self.timestep_spacing}"
        if self.kind in (EULER, ANCESTRAL) and self.timestep_spacing == "linspace":
            return "euler_linspace"
        return self.timestep_spacing

    @property
    def betas(self) -> tuple[str, float, float, bool]:
        """What decides the noise levels on which the network was trained."""
        return self.beta_schedule, self.beta_start, self.beta_end, self.rescale_betas_zero_snr

    def levels(self) -> DiffusionLevels:
        """The noise levels."""
        return DiffusionLevels(
            self.beta_schedule,
            self.beta_start,
            self.beta_end,
            self.rescale_betas_zero_snr,
            self.steps_offset,
            to_zero=self.set_alpha_to_one and self.final_sigmas_type == "zero",
            # Euler's classes begin with the noise of the first level alone, unless their timesteps are leading ones.
            full_noise=not self.kind.startswith("Euler") or self.timestep_spacing == "leading",
            table=self.table,
        )


def diffusion_scheduler_in(path: Path, kinds: tuple[str, ...] = KINDS) -> DiffusionFields:
    """What a scheduler_config.json says, of a class of `kinds`. Raises UsageError for one that is not supported."""
    kind, config = scheduler_config(path, kinds)
    refuse(path, config, NOT_FOLLOWED)
    if kind in CLIPPING and config.get("clip_sample", True):
        raise UsageError(f"{path}: clip_sample is true, which is not implemented: set it to false")
    return diffusion_fields(config, kind, path)


def diffusion_fields(config: dict[str, Any], kind: str, path: Path = Path("scheduler_config.json")) -> DiffusionFields:
    """The fields of the configuration of a scheduler of a class; `path` is for messages."""
    own = {"timestep_spacing": SPACING.get(kind, "leading"), "set_alpha_to_one": ALPHA_TO_ONE.get(kind, True)}
    told = own | {name: value for name, value in config.items() if value is not None} | {"kind": kind}
    if kind not in ALPHA_TO_ONE:  # other classes may carry the option along, but do not read it
        told["set_alpha_to_one"] = True
    if kind not in (DPM, EULER):
        told["final_sigmas_type"] = "zero"
    fields = fields_of(path, told, DiffusionFields, {})
    require(path, kind, config, FOLLOWED.get(kind, {}))
    if fields.rescale_betas_zero_snr and fields.prediction_type == "epsilon":
        raise UsageError(f"{path}: rescale_betas_zero_snr: no image follows from a prediction of noise at noise alone")
    return fields
