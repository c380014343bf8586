"""The models that can be sampled from, by the class of their pipeline in diffusers."""

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from diffusers import DiffusionPipeline

from .errors import ModelError
from .flux import FluxFlow, FluxOneStep
from .pipeline import FlowPipelineModel, OneStepPipelineModel, PipelineModel
from .sana_sprint import SanaSprint
from .stable_diffusion import SDTurbo, SDXLTurbo
from .wan import WanFlow
from .z_image import ZImageFlow


@dataclass(frozen=True)
class Family:
    """Models of one architecture.

    Attributes:
        name: for people.
        flow: makes `sampling.FlowModel` of a pipeline, for `ntrk`, `dps`, `svdd`, `base`; None if it is no flow.
        one_step: makes `sampling.OneStepModel` of it, for `wgnc`; None if it takes more than one step.
        videos: it makes videos, not images.
        left_out: components that are not loaded, by name, with None.
    """

    name: str
    flow: type[FlowPipelineModel] | None = None
    one_step: type[OneStepPipelineModel] | None = None
    videos: bool = False
    left_out: Mapping[str, None] = field(default_factory=dict)

    @property
    def pipeline(self) -> type[DiffusionPipeline]:
        """Of diffusers."""
        return self._any.pipeline

    @property
    def denoiser_name(self) -> str:
        """Of the component that is called at every step."""
        return self._any.denoiser_name

    @property
    def _any(self) -> type[PipelineModel]:
        adapter: type[PipelineModel] | None = self.flow or self.one_step
        assert adapter is not None
        return adapter

    def adapter(self, source: str, one_step: bool, options: Iterable[str] = ()) -> type[PipelineModel]:
        """What makes a model for the samplers of its pipeline.

        Args:
            source: what a person called the model.
            one_step: it is to be used as a one-step model, not as a flow.
            options: names of keyword arguments that it is to be made with.

        Raises:
            ModelError: it cannot be used so, or has no such option.
        """
        adapter: type[PipelineModel] | None = self.one_step if one_step else self.flow
        if adapter is None:
            raise ModelError(
                f"{source!r} ({self.name}) takes more than one step: `noisetilt sample` steers it, and wgnc cannot"
                if one_step
                else f"{source!r} ({self.name}) is a model of one step: `noisetilt optimize`, that is wgnc, steers it"
            )
        valid = inspect.signature(adapter).parameters
        for option in options:
            if option not in valid:
                named = ", ".join(name for name in valid if name not in _NOT_OF_THE_IMAGE)
                raise ModelError(f"{source!r} ({self.name}) has no {option}; it has {named}")
        return adapter


_NOT_OF_THE_IMAGE = ("pipe", "max_sequence_length", "fps", "gradient_checkpointing")
"""Arguments of models that are not of what they make."""
_OF_IMAGES: Mapping[str, None] = {
    "feature_extractor": None,
    "image_encoder": None,
}  # for prompts that are images

_FAMILIES = (
    Family("FLUX", flow=FluxFlow, one_step=FluxOneStep),
    Family("Wan2.1", flow=WanFlow, videos=True),
    Family("SD-Turbo", one_step=SDTurbo, left_out={**_OF_IMAGES, "safety_checker": None}),
    Family("SDXL-Turbo", one_step=SDXLTurbo, left_out=_OF_IMAGES),
    Family("SANA-Sprint", one_step=SanaSprint),
    Family("Z-Image", flow=ZImageFlow),
)

FAMILIES: Mapping[str, Family] = {family.pipeline.__name__: family for family in _FAMILIES}
"""By the name of the pipeline's class, which its model_index.json has."""


def family_of(pipe: Any) -> Family:
    """The family of a pipeline.

    Raises:
        TypeError: it is of none.
    """
    for family in _FAMILIES:
        if isinstance(pipe, family.pipeline):
            return family
    raise TypeError(f"pipe must be one of {', '.join(FAMILIES)}, got {type(pipe).__name__}")
