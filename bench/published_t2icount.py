"""Published code of T2ICount with small random weights, for `bench.reward_parity`.

    git clone https://github.com/cha15yq/T2ICount
    PYTHONPATH=T2ICount python -m bench.reward_parity

It has no licence and no package, so it must be on the path; it needs einops and omegaconf. Replaced are the
lines that stop the gradient at the VAE, Lightning's wrappers of the networks, and the loading of the real
Stable Diffusion.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

NUMBER, NOUN = 3, "boats"
SIDE = 384


class TextModel(nn.Module):
    """CLIP's text model, which encodes nouns as the published code does."""

    def __init__(self, tokenizer: Any) -> None:
        super().__init__()
        from transformers import CLIPTextConfig, CLIPTextModel

        end = len(tokenizer) - 1
        layers = {"hidden_size": 768, "intermediate_size": 32, "num_hidden_layers": 2}
        tokens = {"vocab_size": end + 1, "eos_token_id": end, "bos_token_id": end - 1, "pad_token_id": end}
        self.transformer = CLIPTextModel(CLIPTextConfig(**layers, **tokens, num_attention_heads=12))
        self.tokenizer = tokenizer

    def encode(self, nouns: list[str]) -> Tensor:
        """Return the hidden states (B, 77, 768)."""
        tokens = self.tokenizer(nouns, padding="max_length", max_length=77, return_tensors="pt")
        states: Tensor = self.transformer(input_ids=tokens.input_ids).last_hidden_state
        return states


class Vae(nn.Module):
    """The published encoder and the layer after it."""

    def __init__(self) -> None:
        super().__init__()
        from ldm.modules.diffusionmodules.model import Encoder

        sizes = {"ch": 32, "ch_mult": (1, 1, 2, 2), "num_res_blocks": 2, "resolution": 256}
        self.encoder = Encoder(**sizes, in_channels=3, out_ch=3, z_channels=4, attn_resolutions=[])
        self.quant_conv = nn.Conv2d(8, 8, 1)

    def encode(self, images: Tensor) -> Any:
        """Return the normal distribution of the latents."""
        from ldm.modules.distributions.distributions import DiagonalGaussianDistribution

        return DiagonalGaussianDistribution(self.quant_conv(self.encoder(images)))


class Diffusion(nn.Module):
    """The published U-Net."""

    def __init__(self) -> None:
        super().__init__()
        from ldm.modules.diffusionmodules.openaimodel import UNetModel

        self.diffusion_model = UNetModel(
            image_size=32,
            in_channels=4,
            out_channels=4,
            model_channels=32,
            attention_resolutions=[4, 2, 1],
            num_res_blocks=2,
            channel_mult=[1, 1, 2, 2],
            num_heads=8,
            use_spatial_transformer=True,
            context_dim=768,
            legacy=False,
        )

    def forward(self, latents: Tensor, t: Tensor, c_crossattn: list[Tensor]) -> Any:
        """Return the features that the published code takes from the U-Net."""
        return self.diffusion_model(latents, t, context=torch.cat(c_crossattn, 1))


def t2icount(folder: Path) -> tuple[Any, tuple[int, ...]]:
    """Save the weights for the code of T2ICount; return the reward by its count, and the image size."""
    import tiny_clip
    from transformers.models.clip import modeling_clip

    for name in ("CLIPTextTransformer", "_expand_mask"):  # imported there, but not used
        if not hasattr(modeling_clip, name):
            setattr(modeling_clip, name, None)
    from models.diff_unet import UNetWrapper
    from models.reg_model import Count, Decoder

    tokenizer = tiny_clip.make_tokenizer()
    torch.manual_seed(0)
    model = Count.__new__(Count)  # its constructor loads the real Stable Diffusion
    nn.Module.__init__(model)
    model.vae, model.clip = Vae(), TextModel(tokenizer)
    model.unet = UNetWrapper(Diffusion(), base_size=SIDE, max_attn_size=SIDE // 8)
    model.decoder = Decoder([32, 32, 64, 64], 16)
    with torch.no_grad():
        for parameter in model.eval().requires_grad_(False).parameters():
            parameter.add_(0.03 * torch.randn_like(parameter))
    for part in model.modules():
        part.checkpoint = False  # its own checkpointing needs weights with gradients
    tensors = {
        f"clip.transformer.text_model.{name.removeprefix('text_model.')}": tensor
        for name, tensor in model.clip.transformer.state_dict().items()
    }
    others = {name: t for name, t in model.state_dict().items() if not name.startswith("clip.")}
    torch.save(tensors | others, folder / "best_model_paper.pth")
    tokenizer.save_pretrained(folder)
    mask = torch.zeros(1, 77, 1, 1)
    mask[:, 1 : 1 + len(tokenizer(NOUN, add_special_tokens=False).input_ids)] = 1

    def features(images: Tensor, nouns: list[str]) -> tuple[Any, Tensor]:
        text = model.clip.encode(nouns)
        times = torch.zeros(len(images), dtype=torch.int64)
        return model.unet(model.vae.encode(images).mode(), times, c_crossattn=[text]), text

    model.extract_feat = features

    def score(images: Tensor) -> Tensor:
        number = len(images)
        density = model((images - 0.5) / 0.5, [NOUN] * number, mask.expand(number, -1, -1, -1))[0]
        counts = density.sum(dim=(1, 2, 3)) / 60
        return -functional.smooth_l1_loss(counts, torch.full([number], NUMBER), reduction="none", beta=1.0)

    return score, (SIDE, SIDE)
