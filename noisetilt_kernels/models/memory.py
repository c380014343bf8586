"""Memory of guided sampling, counted from the configurations of a model without its weights.

The networks are made of torch's fake tensors, which have shapes and no values. One guided step runs on them,
and the bytes that are alive at its peak are counted. Workspace of GPU kernels and fragmentation of the
allocator are not counted.
"""

import gc
import inspect
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers.utils.logging
import torch
from diffusers import AutoencoderTiny
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..quiet import errors_only
from ..sampling import FlowModel, Reward
from .fine_tuned import gguf_bytes
from .loading import Configurations, configurations, prompt_lengths
from .networks import network_class
from .quantize import kind_on_disk, nf4_difference, quantise, quantise_stand_ins
from .tiny_decoder import tiny_config


@dataclass(frozen=True)
class MemoryPlan:
    """Memory of guided sampling, in bytes.

    Attributes:
        shape: shape of one latent.
        pixels: shape of one decoded image (3, H, W) or video (3, F, H, W).
        denoiser, vae, reward_decoder, text_encoders, rewards: size of the weights; of all experts for a model
            with several denoisers.
        activations: peak of everything else for one micro-batch; with a gradient, mainly what the graph keeps
            for the backward. With a reward decoder it may be the VAE's decoding of finished images.
        total: peak on the device.
    """

    shape: tuple[int, ...]
    pixels: tuple[int, ...]
    denoiser: int
    vae: int
    reward_decoder: int
    text_encoders: int
    rewards: int
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
    quantize: str | None = None,
    load_reward: Callable[[], Reward | None] | None = None,
    reward_decoder: str | None = None,
    denoiser: str | None = None,
    **options: Any,
) -> MemoryPlan:
    """Count the memory of guided sampling with a model, without loading its weights.

    Weights that the configurations describe as quantised count as they are stored, see `kind_on_disk`.

    Args:
        source: see `load_pipeline`; only the configurations are read.
        dtype: dtype of the weights.
        micro_batch: number of images or videos computed at once.
        offload: see `load_pipeline`; text encoders and denoisers are then not on the device together.
        gradient: True if the method takes a gradient; without it nothing is kept for a backward.
        one_step: True to use the model as a one-step model.
        quantize: see `load_pipeline`.
        load_reward: function that loads the reward, called while new tensors are fake. Tensors that it keeps
            alive count as weights of rewards. If it returns a reward, the graph of the reward is counted.
        reward_decoder: folder or hub id of the tiny autoencoder that decodes for rewards during sampling, see
            `PipelineModel`; None for the VAE.
        denoiser: see `load_pipeline`. Only a GGUF file on this machine changes the plan.
        options: arguments of the model's class, such as height and width.

    Raises:
        ModelError: the model does not exist, or cannot be used in this way.
        ValueError: an argument of the model's class is out of its range.
    """
    in_gguf = None if denoiser is None else gguf_bytes(denoiser)
    with _fake_model(source, dtype, one_step, options, quantize, reward_decoder) as model:
        if in_gguf is not None:
            quantise_stand_ins(model.denoisers[0], "int8")
        for prompt in model.needed_prompts([""]):
            model.prompts.put(prompt, model.placeholder_prompt())
        with PeakMemory() as loading:
            reward = load_reward() if load_reward is not None else None
            gc.collect()
        rewards = loading.alive
        activations, pixels = _activations(model, one_step, gradient, micro_batch, reward)
    encoders = [
        network
        for name, network in model.pipe.components.items()
        if network is not None and "text_encoder" in name
    ]
    denoisers, vae = [_weight_bytes(one) for one in model.denoisers], _weight_bytes(model.pipe.vae)
    if in_gguf is not None:
        denoisers[0] = in_gguf
    tiny = 0 if model.reward_decoder is None else _weight_bytes(model.reward_decoder)
    text_encoders = sum(map(_weight_bytes, encoders))
    always = tiny + rewards
    together = vae + always + activations + (max(denoisers) if offload else sum(denoisers) + text_encoders)
    return MemoryPlan(
        shape=model.shape,
        pixels=pixels,
        denoiser=sum(denoisers),
        vae=vae,
        reward_decoder=tiny,
        text_encoders=text_encoders,
        rewards=rewards,
        activations=activations,
        total=max(together, text_encoders + always),
    )


def latent_shape(
    source: str | Path, *, one_step: bool = False, reward_decoder: str | None = None, **options: Any
) -> tuple[int, ...]:
    """Return the shape of one latent of a model, without loading its weights.

    Arguments and errors are the same as for `plan_memory`.
    """
    with _fake_model(source, torch.bfloat16, one_step, options, reward_decoder=reward_decoder) as model:
        shape: tuple[int, ...] = model.shape
    return shape


def observe_step(
    source: str | Path, observer: TorchDispatchMode, *, dtype: torch.dtype = torch.bfloat16, **options: Any
) -> tuple[tuple[int, ...], int, int]:
    """Run guided steps of a model without weights, one for each of its denoisers, within a dispatch mode.

    A step is a forward and a backward of a denoiser and of the VAE's decoder, for one sample.

    Args:
        source, dtype, options: see `plan_memory`.
        observer: mode that sees every operator.

    Returns:
        Shape of one latent, bytes of the weights of one denoiser and the VAE, and number of steps.

    Raises:
        ModelError: the model does not exist, or cannot be used in this way.
    """
    one_step = configurations(source).family.flow is None
    with _fake_model(source, dtype, one_step, options) as model:
        for prompt in model.needed_prompts([""]):
            model.prompts.put(prompt, model.placeholder_prompt())
        with observer:
            _activations(model, one_step, gradient=True, micro_batch=1, reward=None)
    weights = max(map(_weight_bytes, model.denoisers)) + _weight_bytes(model.pipe.vae)
    return model.shape, weights, len(model.denoisers)


def flow_without_weights(source: str | Path, **options: Any) -> FlowModel:
    """Return a flow whose times can be computed, and its networks not.

    Arguments and errors are the same as for `plan_memory`.
    """
    with _fake_model(source, torch.bfloat16, False, options) as model:
        flow: FlowModel = model
    return flow


@contextmanager
def _fake_model(
    source: str | Path,
    dtype: torch.dtype,
    one_step: bool,
    options: dict[str, Any],
    quantize: str | None = None,
    reward_decoder: str | None = None,
) -> Iterator[Any]:
    """Yield a model made of fake tensors; within the block all new tensors are fake."""
    configs, lengths = configurations(source), prompt_lengths(source)
    adapter = configs.family.adapter(str(source), one_step, options)
    # not the meta device: there, unlike on real devices, attention keeps its full weight matrix
    with FakeTensorMode(allow_non_fake_inputs=True), _default_dtype(dtype):
        if reward_decoder is not None:
            configs.family.check_tiny(str(source))
            tiny = _fake_network(AutoencoderTiny, tiny_config(reward_decoder))
            options = {**options, "reward_decoder": tiny}
        model = adapter(_fake_pipeline(configs, lengths), **options)
        if quantize is not None:
            for denoiser in model.denoisers:
                owner = f"the denoiser of {str(source)!r}"
                quantise(owner, denoiser, quantize, torch.device("cpu"), stand_in=True)
        yield model


def _fake_pipeline(configs: Configurations, lengths: Mapping[str, int]) -> Any:
    """Make a pipeline with networks of its classes. Its tokenizers are stand-ins with a length only."""
    components: dict[str, Any] = {}
    for name, config in configs.networks.items():
        library, class_name = configs.components[name]
        network = network_class(library, class_name)
        components[name] = (
            _fake_network(network, config)
            if library == "diffusers"
            else network(network.config_class.from_dict(config))
        )
        if kind := kind_on_disk(config):
            quantise_stand_ins(components[name], kind)
    pipeline: Any = configs.family.facts.pipeline
    parameters = inspect.signature(pipeline.__init__).parameters
    index = configs.components.items()
    settings = {name: value for name, value in index if name in parameters and not isinstance(value, list)}
    absent = dict.fromkeys(name for name, value in index if isinstance(value, list))
    pipe = pipeline(**{**absent, **components, **settings})
    for name, length in lengths.items():
        setattr(pipe, name, SimpleNamespace(model_max_length=length))
    pipe.scheduler = configs.scheduler
    return pipe


def _fake_network(network: Any, config: Mapping[str, Any]) -> Any:
    """Make a network of diffusers, without the warnings of unexpected entries in its configuration."""
    with errors_only(diffusers.utils.logging):
        return network.from_config(config)


def _activations(
    model: Any, one_step: bool, gradient: bool, micro_batch: int, reward: Reward | None
) -> tuple[int, tuple[int, ...]]:
    """Run one guided step as the samplers do, with each expert of the model, and finish with the VAE.

    Returns:
        Peak of the bytes alive beside the weights, and the shape of one decoded image or video.
    """
    prompts = [""] * micro_batch
    judge = reward or (lambda pixels, prompts: pixels.flatten(1).sum(dim=1))
    x = torch.empty(micro_batch, *model.shape, dtype=torch.float32, requires_grad=gradient)
    decode = model.decode_preview or model.decode
    with PeakMemory() as memory:
        for time in (0.5,) if len(model.denoisers) == 1 else (1.0, 0.5):  # one time for each expert
            with torch.set_grad_enabled(gradient):
                output = model.denoised(x, prompts) if one_step else model.velocity(x, time, prompts)
                latents = output.detach().requires_grad_(gradient)
                images = decode(latents)
                shape = tuple(images.shape[1:])
                rewards = judge(images, prompts)
                del images
                if gradient:
                    (cotangent,) = torch.autograd.grad(rewards.sum(), latents)
                    torch.autograd.grad(output, x, cotangent)
                    del cotangent
            del output, rewards
        if model.decode_preview is not None:
            with torch.no_grad():
                judge(model.decode(latents), prompts)
    return memory.peak, shape


class PeakMemory(TorchDispatchMode):
    """Counts the bytes of tensors made within its block and still alive; `peak` is the largest `alive`.

    Tensors that share a storage count once. Tensors made before the block, such as weights, do not count.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = self.alive = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for storage in _storages((args, kwargs)):
            self._track(storage, 0)
        output = func(*args, **(kwargs or {}))
        for storage in _storages(output):
            self._track(storage, storage.nbytes())
        self.peak = max(self.peak, self.alive)
        return output

    def _track(self, storage: torch.UntypedStorage, size: int) -> None:
        if storage._cdata not in self._known:
            self._known.add(storage._cdata)
            self.alive += size
            weakref.finalize(storage, self._forget, storage._cdata, size)

    def _forget(self, storage: int, size: int) -> None:
        self._known.discard(storage)
        self.alive -= size


def _storages(values: Any) -> list[torch.UntypedStorage]:
    """Return the storages of all tensors in a nested structure."""
    return [value.untyped_storage() for value in tree_leaves(values) if isinstance(value, Tensor)]


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Make new weights with this dtype within the block; fake tensors cannot be cast in place."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _weight_bytes(model: torch.nn.Module) -> int:
    return sum(parameter.nbytes for parameter in model.parameters()) + nf4_difference(model)
