"""How much memory guided sampling will take, from the configurations of a model alone.

The networks are made of torch's fake tensors, which have shapes and no values. A guided step is then made with them,
and what is alive at its most is counted, not guessed. What is not counted are a reward's network, what a GPU's kernels
take for themselves, and what the allocator cannot use.
"""

import inspect
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import torch
import transformers
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..sampling import Reward
from .loading import Configurations, configurations


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes that guided sampling takes.

    Attributes:
        shape: of one latent.
        pixels: of what is made of it, (3, H, W), of videos (3, F, H, W).
        denoiser, vae, text_encoders: weights.
        activations: everything else of one micro-batch, at its most; with a gradient that is above all what is kept
            for the backward.
        total: on the device at once.
    """

    shape: tuple[int, ...]
    pixels: tuple[int, ...]
    denoiser: int
    vae: int
    text_encoders: int
    activations: int
    total: int


def plan_memory(
    source: str | Path,
    *,
    dtype: torch.dtype = torch.bfloat16,
    micro_batch: int = 1,
    offload: bool = False,
    gradient: bool = True,
    one_step: bool = False,
    reward: Reward | None = None,
    **options: Any,
) -> MemoryPlan:
    """Count the memory of guided sampling with a model, without loading its weights.

    Args:
        source: as of `load_pipeline`; only its configurations are read.
        dtype: of the weights.
        micro_batch: images or videos at once.
        offload: as of `load_pipeline`: the text encoders are then not on the device while the denoiser is.
        gradient: whether one is taken; without it nothing is kept for a backward.
        one_step: the model is used as a one-step model.
        reward: one without weights, whose share is then counted as well.
        options: of the model's class, such as height and width.

    Raises:
        ModelError: there is no such model, or it cannot be used so. ValueError: as of the model's class.
    """
    with _without_values(source, dtype, one_step, options) as model:
        for prompt in ("", options.get("negative_prompt", "")):
            model.prompts.keep(prompt, model.blank_prompt())
        activations, pixels = _activations(model, one_step, gradient, micro_batch, reward)
    encoders = [
        network
        for name, network in model.pipe.components.items()
        if network is not None and "text_encoder" in name
    ]
    weights = _bytes(model.denoiser), _bytes(model.pipe.vae), sum(map(_bytes, encoders))
    text_encoders = 0 if offload else weights[2]
    return MemoryPlan(
        shape=model.shape,
        pixels=pixels,
        denoiser=weights[0],
        vae=weights[1],
        text_encoders=weights[2],
        activations=activations,
        total=max(weights[0] + weights[1] + text_encoders + activations, weights[2]),
    )


def latent_shape(source: str | Path, *, one_step: bool = False, **options: Any) -> tuple[int, ...]:
    """The shape of one latent of a model, without loading its weights. Arguments, and what is raised: `plan_memory`."""
    with _without_values(source, torch.bfloat16, one_step, options) as model:
        shape: tuple[int, ...] = model.shape
    return shape


@contextmanager
def _without_values(
    source: str | Path, dtype: torch.dtype, one_step: bool, options: dict[str, Any]
) -> Iterator[Any]:
    """A model of fake tensors, within a block in which all tensors are."""
    configs = configurations(source)
    adapter = configs.family.adapter(str(source), one_step, options)
    # not the meta device, on which attention is computed by keeping all its weights, as it is on no other
    with FakeTensorMode(allow_non_fake_inputs=True), _default_dtype(dtype):
        yield adapter(_pipeline(configs), **options)


def _pipeline(configs: Configurations) -> Any:
    """The pipeline with networks of its classes, and of its tokenizers what is asked of them without a prompt."""
    components: dict[str, Any] = {}
    for name, config in configs.networks.items():
        library, class_name = configs.components[name]
        network: Any = getattr({"diffusers": diffusers, "transformers": transformers}[library], class_name)
        components[name] = (
            network.from_config(config)
            if library == "diffusers"
            else network(network.config_class.from_dict(config))
        )
    names = inspect.signature(configs.family.pipeline.__init__).parameters
    index = configs.components.items()
    settings = {name: value for name, value in index if name in names and not isinstance(value, list)}
    absent = dict.fromkeys(name for name, value in index if isinstance(value, list))
    pipe = configs.family.pipeline(**{**absent, **components, **settings})
    for name, length in configs.prompt_lengths.items():
        setattr(pipe, name, SimpleNamespace(model_max_length=length))
    with unset_fake_temporarily():  # schedulers compute with numpy
        pipe.scheduler = getattr(
            diffusers, configs.components["scheduler"][1]
        )()  # no size depends on its numbers
    return pipe


def _activations(
    model: Any, one_step: bool, gradient: bool, micro_batch: int, reward: Reward | None
) -> tuple[int, tuple[int, ...]]:
    """Bytes beside the weights at the most of one guided step, made as the samplers do, and the shape of its image."""
    prompts = [""] * micro_batch
    judge = reward or (lambda pixels, prompts: pixels.flatten(1).sum(dim=1))
    x = torch.empty(micro_batch, *model.shape, dtype=torch.float32, requires_grad=gradient)
    with _Alive() as alive, torch.set_grad_enabled(gradient):
        output = model.denoised(x, prompts) if one_step else model.velocity(x, 0.5, prompts)
        latents = output.detach().requires_grad_(gradient)
        images = model.decode(latents)
        shape = tuple(images.shape[1:])
        rewards = judge(images, prompts)
        del images
        if gradient:
            (cotangent,) = torch.autograd.grad(rewards.sum(), latents)
            torch.autograd.grad(output, x, cotangent)
    return alive.peak, shape


class _Alive(TorchDispatchMode):
    """Counts the bytes of all tensors that are made within its block and not gone yet.

    Tensors that share their memory count once, and those that were there before, such as weights, do not count.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = self._now = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for storage in _storages((args, kwargs)):
            self._watch(storage, 0)
        output = func(*args, **(kwargs or {}))
        for storage in _storages(output):
            self._watch(storage, storage.nbytes())
        self.peak = max(self.peak, self._now)
        return output

    def _watch(self, storage: torch.UntypedStorage, size: int) -> None:
        if storage._cdata not in self._known:
            self._known.add(storage._cdata)
            self._now += size
            weakref.finalize(storage, self._forget, storage._cdata, size)

    def _forget(self, storage: int, size: int) -> None:
        self._known.discard(storage)
        self._now -= size


def _storages(values: Any) -> list[torch.UntypedStorage]:
    return [value.untyped_storage() for value in tree_leaves(values) if isinstance(value, Tensor)]


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """New weights are of this dtype; fake ones cannot be cast in place."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _bytes(model: torch.nn.Module) -> int:
    return sum(parameter.nbytes for parameter in model.parameters())
