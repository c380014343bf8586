"""Models of diffusers for the samplers, and the samplers' step as a scheduler for diffusers.

    pipe = models.load_pipeline("black-forest-labs/FLUX.1-dev")
    result = sampling.ntrk(models.FluxFlow(pipe), reward, ["a cat"] * 4, rho=0.3)

    pipe.scheduler = models.FlowSDEScheduler.from_config(pipe.scheduler.config, schedule="linear")
    image = pipe("a cat").images[0]

`import noisetilt_kernels` does not import this package, as it needs diffusers, transformers and accelerate.
"""

try:
    import accelerate as _accelerate
    import diffusers as _diffusers
    import transformers as _transformers
except ImportError as error:
    raise ImportError(
        f'noisetilt_kernels.models needs {error.name}: pip install "noisetilt-kernels[diffusers]"'
    ) from None

from .errors import ModelError
from .families import FAMILIES, Family, family_of
from .flux import FluxFlow, FluxOneStep
from .loading import load_pipeline
from .pipeline import PipelineModel
from .sana_sprint import SanaSprint
from .scheduler import FlowSDEScheduler
from .stable_diffusion import SDTurbo, SDXLTurbo
from .wan import WanFlow
from .z_image import ZImageFlow

__all__ = [
    "FAMILIES",
    "Family",
    "FlowSDEScheduler",
    "FluxFlow",
    "FluxOneStep",
    "ModelError",
    "PipelineModel",
    "SDTurbo",
    "SDXLTurbo",
    "SanaSprint",
    "WanFlow",
    "ZImageFlow",
    "family_of",
    "load_pipeline",
]
del _accelerate, _diffusers, _transformers
