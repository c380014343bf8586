"""T2ICount: a differentiable counter of objects on the features of Stable Diffusion 1.5."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.autoencoders.vae import Encoder
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import CLIPTextConfig, CLIPTextModel

from ..checkpoint import count_layers, find_checkpoint, heads_of, read_checkpoint, shape_of
from ..checks import RewardError
from ..loading import load_model, load_tokenizer, warn_of_cut
from ..preprocessing import Preprocessing
from ..registry import default_source
from ..weightless import default_dtype, placed
from .t2icount_decoder import Decoder
from .t2icount_names import encoder_name, unet_name

NAME = "count"
SOURCE = default_source(NAME)

TOKENIZER = "openai/clip-vit-large-patch14"
"""Hub id of the CLIP model whose tokenizer Stable Diffusion 1.5 uses."""

SIDE = 384
"""Height and width in pixels of the images that the model was trained with."""

DENSITY = 60
"""Sum of the density of one object."""

LENGTH = 77
"""Tokens of a noun, start and end included."""

HEAD_WIDTH = 64
"""Width of an attention head in CLIP's text model."""

TEXT, UNET, ENCODER = "clip.transformer.text_model.", "unet.unet.diffusion_model.", "vae.encoder."
"""Beginnings of names in the published file."""


class T2ICount:
    """Number of objects in an image by T2ICount (Qian et al., arXiv 2502.20625); differentiable.

    The VAE of Stable Diffusion 1.5 encodes the image, the fine-tuned U-Net reads it together with the noun,
    and a decoder makes a density of objects from the features. The number is the sum of the density. The
    authors' code stops the gradient at the encoder; here it flows to the pixels.

    Images (B, 3, H, W) in [0, 1] of any size and B nouns -> float32 (B,), at least 0. The whole image is
    resized to 384 x 384. The weights are frozen. Activations are recomputed in the backward pass.

    Args:
        source: the published file, `best_model_paper.pth`; a folder with this .pth file only; or ID:FILE on
            the hub. If there is no tokenizer beside it, that of CLIP is used (`TOKENIZER`).
        device: device of the model and of the images.
        dtype: dtype of the networks of Stable Diffusion; None is bfloat16 on GPUs and float32 on the CPU.
            The decoder is float32.

    Raises:
        RewardError: the weights or their files are missing or do not match; the message says what to do.
    """

    def __init__(
        self,
        source: str | Path = SOURCE,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
    ) -> None:
        device = torch.device(device)
        file, place = _find(str(source))
        dtype = dtype or default_dtype(device)
        tensors = read_checkpoint(NAME, file)
        text: Any = load_model(
            NAME,
            CLIPTextModel,
            str(file),
            _text_config(file, tensors),
            "the whole of T2ICount",
            dtype,
            tensors={
                name.removeprefix("clip.transformer."): tensor
                for name, tensor in tensors.items()
                if name.startswith(TEXT) and not name.endswith("position_ids")
            },
            published_name=lambda name: TEXT + name.removeprefix("text_model."),
        )
        width = text.config.hidden_size
        self._tokenizer = load_tokenizer(NAME, [place, TOKENIZER], text.config.vocab_size)
        # on the meta device, because random values would be replaced
        with torch.device("meta"):
            encoder, to_latents = _encoder(file, tensors)
            unet = _unet(file, tensors, width)
            levels = unet.config.block_out_channels
            (features,) = shape_of(NAME, file, tensors, "decoder.regressor.norm1.weight", 1)
            decoder = Decoder(levels, features, width)
        _fill(file, tensors, encoder, encoder_name, dtype)
        _fill(file, tensors, to_latents, lambda name: f"vae.quant_conv.{name}", dtype)
        _fill(file, tensors, unet, unet_name, dtype)
        _fill(file, tensors, decoder, lambda name: f"decoder.{name}", torch.float32)
        for block in (*encoder.down_blocks, encoder.mid_block, *_layers(unet)):
            block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)
        # moved together, because a U-Net alone warns of every cast
        networks: Any = placed(nn.ModuleList([text, encoder, to_latents, unet, decoder]), device)
        self._text, self._encoder, self._to_latents, self._unet, self._decoder = networks
        self._preprocess = Preprocessing(None, (SIDE, SIDE), "bilinear", None, (0.5,) * 3, (0.5,) * 3)

    def __call__(self, images: Tensor, nouns: Sequence[str]) -> Tensor:
        return self.density(images, nouns).sum(dim=(1, 2, 3))

    def density(self, images: Tensor, nouns: Sequence[str]) -> Tensor:
        """Return the density of objects, float32 (B, 1, 48, 48), whose sum is their number."""
        context, noun = self._read(nouns, images.device)
        pixels = self._preprocess(images).to(context.dtype)
        # the mean of the VAE's normal distribution, without the scale of Stable Diffusion
        latents = self._to_latents(self._encoder(pixels)).chunk(2, dim=1)[0]
        levels = [level.float() for level in self._levels(latents, context)]
        density: Tensor = self._decoder(levels, noun) / DENSITY
        return density

    @torch.no_grad()
    def _read(self, nouns: Sequence[str], device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the hidden states of all tokens (B, 77, width), and the noun's mean, float32 (B, width)."""
        warn_of_cut(NAME, self._tokenizer, nouns, LENGTH)
        options: dict[str, Any] = {"truncation": True, "max_length": LENGTH, "return_tensors": "pt"}
        tokens = self._tokenizer(list(nouns), padding="max_length", **options)
        states = self._text(input_ids=tokens.input_ids.to(device)).last_hidden_state
        # the tokens between start and end
        lengths = tokens.attention_mask.sum(dim=1, keepdim=True) - 2
        place = torch.arange(LENGTH)
        mask = ((place >= 1) & (place <= lengths)).to(device, torch.float32)
        return states, (states.float() * mask[:, :, None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)

    def _levels(self, latents: Tensor, context: Tensor) -> list[Tensor]:
        """Return the features of the U-Net at time 0, from the finest level to the coarsest.

        They are those of the second of three layers in each block on the way up, and of the last in the
        finest block.
        """
        found: list[Tensor] = []
        first, *rest, last = self._unet.up_blocks
        taps = [first.resnets[1], *(block.attentions[1] for block in rest), last.attentions[2]]
        hooks = [
            tap.register_forward_hook(
                lambda module, given, out: found.append(out if isinstance(out, Tensor) else out[0])
            )
            for tap in taps
        ]
        try:
            self._unet(latents, torch.zeros(len(latents), device=latents.device), context)
        finally:
            for hook in hooks:
                hook.remove()
        return found[::-1]


def _find(source: str) -> tuple[Path, str]:
    """Return the published file, and the folder or hub id it belongs to."""
    if source == SOURCE and not Path(source).is_file():
        raise RewardError(
            f"{NAME}: there is no file {SOURCE} in this folder; download T2ICount's weights as "
            "github.com/cha15yq/T2ICount describes and name the file as the source, or name your own counter "
            "as in count:MODULE:NAME"
        )
    found = find_checkpoint(NAME, source, ".pth")
    if found is None:
        raise RewardError(f"{NAME}: {source} has no .pth file; name {SOURCE}, or a folder with it")
    return found


def _text_config(file: Path, tensors: Mapping[str, Tensor]) -> CLIPTextConfig:
    """Return the configuration of the text model with these tensors, named as in the published file."""

    def shape(name: str) -> tuple[int, ...]:
        return shape_of(NAME, file, tensors, f"{TEXT}{name}", 2)

    vocabulary, width = shape("embeddings.token_embedding.weight")
    return CLIPTextConfig(
        hidden_size=width,
        intermediate_size=shape("encoder.layers.0.mlp.fc1.weight")[0],
        num_hidden_layers=count_layers(tensors, f"{TEXT}encoder.layers."),
        num_attention_heads=heads_of(NAME, file, "the text model", width, HEAD_WIDTH),
        max_position_embeddings=shape("embeddings.position_embedding.weight")[0],
        vocab_size=vocabulary,
        bos_token_id=vocabulary - 2,
        eos_token_id=vocabulary - 1,
        pad_token_id=vocabulary - 1,
    )


def _encoder(file: Path, tensors: Mapping[str, Tensor]) -> tuple[Any, nn.Conv2d]:
    """Return the encoder of the VAE and its last layer, which gives mean and variance of the latents."""
    blocks = count_layers(tensors, f"{ENCODER}down.")
    widths = [
        shape_of(NAME, file, tensors, f"{ENCODER}down.{block}.block.1.conv2.weight", 4)[0]
        for block in range(blocks)
    ]
    moments = shape_of(NAME, file, tensors, "vae.quant_conv.weight", 4)[0]
    encoder = Encoder(3, moments // 2, ("DownEncoderBlock2D",) * blocks, tuple(widths))
    return encoder, nn.Conv2d(moments, moments, 1)


def _unet(file: Path, tensors: Mapping[str, Tensor], text_width: int) -> Any:
    """Return a U-Net of the form of Stable Diffusion 1.5."""
    widths = [
        shape_of(NAME, file, tensors, f"{UNET}input_blocks.{3 * block + 1}.0.out_layers.3.weight", 4)[0]
        for block in range(4)
    ]
    return UNet2DConditionModel(block_out_channels=tuple(widths), cross_attention_dim=text_width)


def _layers(unet: Any) -> list[nn.Module]:
    """Return the resnets and transformers of the U-Net."""
    blocks = (*unet.down_blocks, unet.mid_block, *unet.up_blocks)
    return [layer for block in blocks for layer in (*block.resnets, *getattr(block, "attentions", ()))]


def _fill(
    file: Path,
    tensors: Mapping[str, Tensor],
    module: nn.Module,
    published_name: Callable[[str], str],
    dtype: torch.dtype,
) -> None:
    """Load the tensors of a module, which is on the meta device, in this dtype, and freeze it.

    Linear layers whose tensors are published as convolutions of one pixel get them without these dimensions.

    Args:
        file: file of the tensors, for errors.
        tensors: tensors by their published names.
        module: the module.
        published_name: function from a name in the module to the published name.
        dtype: dtype of the module.

    Raises:
        RewardError: a tensor is missing or has another shape.
    """
    state = {}
    for own, wanted in module.state_dict().items():
        name = published_name(own)
        tensor = tensors.get(name)
        if tensor is not None and tensor.ndim == 4 and wanted.ndim == 2:
            tensor = tensor.flatten(1)
        if tensor is None or tensor.shape != wanted.shape:
            found = None if tensor is None else tuple(tensor.shape)
            raise RewardError(
                f"{NAME}: {file} must hold {name} of shape {tuple(wanted.shape)}, got {found}; name the "
                "whole of T2ICount as the source"
            )
        state[own] = tensor.to(dtype)
    module.load_state_dict(state, assign=True)
    module.eval().requires_grad_(False)
