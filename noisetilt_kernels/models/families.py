"""Table of the supported families of models. A new family is a file with its classes, and a line here."""

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .errors import ModelError
from .flux import FluxFlow, FluxOneStep
from .flux2 import Flux2Flow, Flux2KleinFlow
from .ltx import LTXFlow
from .pipeline import FamilyFacts, FlowPipelineModel, OneStepPipelineModel, PipelineModel
from .qwen_image import QwenImageFlow
from .sana_sprint import SanaSprint
from .stable_diffusion import SDTurbo, SDXLTurbo
from .stable_diffusion_3 import SD3Flow
from .wan import WanFlow
from .z_image import ZImageFlow


@dataclass(frozen=True)
class Family:
    """Models of one architecture, and the classes that adapt them to the samplers.

    Attributes:
        flow: class that adapts a pipeline as a `sampling.FlowModel`, for `noisetilt sample`; None if the
            models take one step only.
        one_step: class that adapts a pipeline as a `sampling.OneStepModel`, for `noisetilt optimize`; None
            if the models take several steps only.
    """

    flow: type[FlowPipelineModel] | None = None
    one_step: type[OneStepPipelineModel] | None = None

    @property
    def facts(self) -> FamilyFacts:
        """Name, pipeline class and components of the family."""
        return self._any_adapter.facts

    @property
    def _any_adapter(self) -> type[PipelineModel]:
        adapter: type[PipelineModel] | None = self.flow or self.one_step
        assert adapter is not None
        return adapter

    def check_index(self, owner: str, index: Mapping[str, Any]) -> None:
        """Check the content of model_index.json, see `PipelineModel.check_index`."""
        self._any_adapter.check_index(owner, index)

    def check_parts(self, owner: str, pipe: Any) -> None:
        """Check configurations, see `PipelineModel.check_parts`."""
        self._any_adapter.check_parts(owner, pipe)

    @property
    def videos(self) -> bool:
        """True if the models make videos, False for images."""
        return self.facts.videos

    def check_tiny(self, source: str) -> None:
        """Raise ModelError unless an AutoencoderTiny of diffusers can decode the latents of the models.

        Args:
            source: the user's name for the model, for the message.
        """
        if not self.facts.tiny:
            raise ModelError(
                f"{source!r} ({self.facts.name}) cannot have a reward decoder: diffusers' AutoencoderTiny is "
                "for the images of FLUX.1, Z-Image, Stable Diffusion 3, SD-Turbo and SDXL-Turbo; leave it out"
            )

    def adapter(self, source: str, one_step: bool, options: Iterable[str] = ()) -> type[PipelineModel]:
        """Return the class that adapts a pipeline to the samplers.

        Args:
            source: the user's name for the model, for error messages.
            one_step: True for a `sampling.OneStepModel`, False for a `sampling.FlowModel`.
            options: names of keyword arguments that the class must accept.

        Raises:
            ModelError: the family has no such class, or the class has no such option.
        """
        adapter: type[PipelineModel] | None = self.one_step if one_step else self.flow
        model = f"{source!r} ({self.facts.name})"
        if adapter is None:
            raise ModelError(
                f"{model} takes more than one step, which wgnc cannot steer; use `noisetilt sample`"
                if one_step
                else f"{model} is a one-step model; use `noisetilt optimize`, which steers it with wgnc"
            )
        parameters = inspect.signature(adapter).parameters
        for option in options:
            if option not in parameters:
                valid = ", ".join(name for name in parameters if name not in _NOT_IMAGE_SETTINGS)
                raise ModelError(f"{model} has no {option}; it has {valid}")
        return adapter


_NOT_IMAGE_SETTINGS = ("pipe", "max_sequence_length", "fps", "gradient_checkpointing", "reward_decoder")
"""Adapter arguments that error messages do not list, as they do not describe the image or video."""

_FAMILIES = (
    Family(flow=FluxFlow, one_step=FluxOneStep),
    Family(flow=WanFlow),
    Family(one_step=SDTurbo),
    Family(one_step=SDXLTurbo),
    Family(one_step=SanaSprint),
    Family(flow=ZImageFlow),
    Family(flow=QwenImageFlow),
    Family(flow=SD3Flow),
    Family(flow=Flux2Flow),
    Family(flow=Flux2KleinFlow),
    Family(flow=LTXFlow),
)

FAMILIES: Mapping[str, Family] = {family.facts.pipeline.__name__: family for family in _FAMILIES}
"""Families by the name of their diffusers pipeline class, as written in model_index.json."""

__all__ = [
    "FAMILIES",
    "Family",
    "Flux2Flow",
    "Flux2KleinFlow",
    "FluxFlow",
    "FluxOneStep",
    "LTXFlow",
    "QwenImageFlow",
    "SD3Flow",
    "SDTurbo",
    "SDXLTurbo",
    "SanaSprint",
    "WanFlow",
    "ZImageFlow",
    "family_of",
]


def family_of(pipe: Any) -> Family:
    """Return the family of a pipeline.

    Raises:
        TypeError: the pipeline belongs to no supported family.
    """
    for family in _FAMILIES:
        if isinstance(pipe, family.facts.pipeline):
            return family
    raise TypeError(f"pipe must be one of {', '.join(FAMILIES)}, got {type(pipe).__name__}")
