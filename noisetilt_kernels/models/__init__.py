"""FLUX in diffusers as a model for the samplers, and the samplers' step as a scheduler for diffusers.

    pipe = models.load_flux("black-forest-labs/FLUX.1-dev")
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

from .flux import FluxFlow, FluxOneStep
from .loading import ModelError, load_flux
from .scheduler import FlowSDEScheduler

__all__ = ["FlowSDEScheduler", "FluxFlow", "FluxOneStep", "ModelError", "load_flux"]
del _accelerate, _diffusers, _transformers
