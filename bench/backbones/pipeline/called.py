"""A backbone whose network is called as a PipelineFamily says: of pipelines, micro, and shapes with random weights."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn

from bench.backbones.conditioning import Conditioning
from bench.backbones.diffusion import Diffusion
from bench.backbones.diffusion_scheduler import DiffusionFields
from bench.backbones.flow import FlowBackbone
from bench.backbones.flow_scheduler import SchedulerFields
from bench.backbones.pipeline.family import PipelineFamily
from bench.backbones.pipeline.network import pipeline_size
from bench.backbones.size import Size
from bench.errors import one_line
from bench.registry import broken, guarded


class FamilyBackbone(FlowBackbone):
    """Subclasses load the network, and encode and decode. They call `_of` before the constructor of FlowBackbone, which
    reads what it sets."""

    family: PipelineFamily

    def _of(
        self, family: PipelineFamily, fields: Any, scheduler: SchedulerFields | DiffusionFields | None, device: str
    ) -> None:
        """Set what follows from the family and the fields of its network; `scheduler` None is one of rectified flow."""
        self.family, self._fields = family, fields
        self.targets, self.folder = family.targets, family.folder
        self.embedded_guidance = family.embedded_guidance(fields)
        self._of_teachers: dict[nn.Module, Any] = {}
        self.diffusion: Diffusion | None = None
        if isinstance(scheduler, DiffusionFields):
            self.diffusion = Diffusion(scheduler.levels(), scheduler.prediction_type, device)

    def blocks(self, network: Any) -> list[nn.Module]:
        """The repeated blocks of all lists."""
        found = (getattr(network, name) for name in self.family.block_lists)
        blocks = (block for part in found for block in (part if isinstance(part, nn.ModuleList) else [part]))
        return [block for block in blocks if block is not None]  # a UNet may have no middle

    def predict(self, network: nn.Module, x: Tensor, sigma_B: Tensor, conditioning: Conditioning) -> Tensor:
        """The velocity eps - x0 [B, C, h, w] without classifier-free guidance."""
        state, level_B = self.diffusion.inputs(x, sigma_B) if self.diffusion else (x, sigma_B)
        state = state.to(self.dtype)
        tensors = {name: self._typed(name, tensor) for name, tensor in conditioning.tensors.items()}
        fields = self._fields_of(network)
        given = Conditioning(tensors, conditioning.lengths)
        arguments = guarded("family", self.family.name, self.family.arguments, fields, state, level_B, given)
        try:
            output = network(**arguments, return_dict=False)[0]
        except TypeError as error:  # an argument that the network does not have, or of a wrong kind
            if network is not self.transformer:  # a teacher's is refused where it is loaded
                raise
            cause = f"gives arguments that its network does not take: {one_line(error)}"
            raise broken("family", self.family.name, cause) from error
        predicted = guarded("family", self.family.name, self.family.prediction, fields, output, state)
        if predicted.shape != x.shape:
            if network is not self.transformer:
                return predicted  # a teacher's is refused where it is loaded
            raise broken(
                "family", self.family.name, f"returns a prediction {tuple(predicted.shape)} at {tuple(x.shape)}"
            )
        return self.diffusion.velocity(predicted, x, sigma_B) if self.diffusion else predicted

    def _fields_of(self, network: nn.Module) -> Any:
        """The family's fields of a network: the own one, or a teacher's that is a whole model."""
        if network is self.transformer:
            return self._fields
        if network not in self._of_teachers:
            self._of_teachers[network] = self.family.fields.model_validate(dict(cast(Any, network).config))
        return self._of_teachers[network]

    def _typed(self, name: str, tensor: Tensor) -> Tensor:
        """A tensor of encoded prompts in the network's type; masks and the guidance scale stay as they are."""
        return tensor if name == "guidance" or not tensor.is_floating_point() else tensor.to(self.dtype)

    def combined(self, v_cond: Tensor, v_uncond: Tensor, guidance: float) -> Tensor:
        """As the family combines them."""
        return self.family.guided(v_cond, v_uncond, guidance)

    def size(self, conditioning: Conditioning) -> Size:
        """Size of the network alone, for prompts as long as these."""
        shapes = {name: tuple(tensor.shape[1:]) for name, tensor in conditioning.tensors.items()}
        return pipeline_size(self.family, dict(cast(Any, self.transformer).config), self.latent_shape[1], shapes, {})
