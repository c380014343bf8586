"""Diffusers models for the samplers, guided pipelines, and the samplers' step as a diffusers scheduler.

    pipe = models.load_pipeline("black-forest-labs/FLUX.1-dev")
    result = sampling.ntrk(models.FluxFlow(pipe), reward, ["a cat"] * 4, rho=0.3)

    pipe.scheduler = models.FlowSDEScheduler.from_config(pipe.scheduler.config, schedule="linear")
    image = pipe("a cat").images[0]

    guided = models.GuidedPipeline(pipe, reward, rho=0.3)
    image = guided("a cat").images[0]

`import noisetilt_kernels` does not import this package, which needs diffusers, transformers and accelerate.
"""

try:
    import accelerate as _accelerate
    import diffusers as _diffusers
    import transformers as _transformers
except ImportError as error:
    raise ImportError(
        f'noisetilt_kernels.models needs {error.name}: pip install "noisetilt-kernels[diffusers]"'
    ) from None

from ..quiet import without_import_warnings

with without_import_warnings():
    from . import families
    from .errors import ModelError
    from .families import *  # noqa: F403  (the classes of all families)
    from .guided_pipeline import GuidedPipeline
    from .loading import load_pipeline
    from .pipeline import PipelineModel
    from .scheduler import FlowSDEScheduler

__all__ = ["FlowSDEScheduler", "GuidedPipeline", "ModelError", "PipelineModel", "load_pipeline"]
__all__ += families.__all__
del _accelerate, _diffusers, _transformers
