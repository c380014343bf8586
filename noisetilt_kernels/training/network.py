"""The small FLUX: tokenizers, text encoders, transformer, and the pipeline made of them."""

from collections.abc import Sequence
from string import ascii_lowercase

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5Tokenizer

from ..functional import pack_latents, unpack_latents
from .data import all_prompts

LATENT = (4, 16, 16)
"""Shape of a latent, with 1024 values."""

TEXT_TOKENS = 8
"""Number of tokens that prompts are padded to, for both encoders."""

WIDTH = 32
"""Width of both text encoders."""


class SmallFlux(nn.Module):
    """Trainable v(x, t, prompts) from the tokenizers, text encoders and transformer of a pipeline."""

    def __init__(self) -> None:
        super().__init__()
        prompts = all_prompts()
        self.tokenizer = CLIPTokenizer(model_max_length=TEXT_TOKENS).train_new_from_iterator(
            [prompts], vocab_size=400
        )
        words = sorted({word for prompt in prompts for word in prompt.split()})
        # log-probabilities; single letters are for words that no training prompt has
        pieces = [(f"\N{LOWER ONE EIGHTH BLOCK}{word}", -1.0) for word in words]
        pieces += [("\N{LOWER ONE EIGHTH BLOCK}", -10.0), *((letter, -10.0) for letter in ascii_lowercase)]
        special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
        self.tokenizer_2 = T5Tokenizer(vocab=special + pieces, extra_ids=0, model_max_length=TEXT_TOKENS)
        self.text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(self.tokenizer),
                hidden_size=WIDTH,
                intermediate_size=2 * WIDTH,
                projection_dim=WIDTH,
                num_hidden_layers=1,
                num_attention_heads=2,
                max_position_embeddings=TEXT_TOKENS,
                bos_token_id=self.tokenizer.bos_token_id,
                eos_token_id=self.tokenizer.eos_token_id,
                pad_token_id=self.tokenizer.pad_token_id,
            )
        )
        self.text_encoder_2 = T5EncoderModel(
            T5Config(
                vocab_size=len(self.tokenizer_2),
                d_model=WIDTH,
                d_kv=WIDTH // 2,
                d_ff=2 * WIDTH,
                num_layers=1,
                num_heads=2,
                dropout_rate=0.0,
            )
        )
        self.transformer = FluxTransformer2DModel(
            in_channels=4 * LATENT[0],
            num_layers=1,
            num_single_layers=4,
            attention_head_dim=32,
            num_attention_heads=3,
            joint_attention_dim=WIDTH,
            pooled_projection_dim=WIDTH,
            axes_dims_rope=(8, 12, 12),
        )
        _, height, width = LATENT
        self.image_ids = FluxPipeline._prepare_latent_image_ids(
            1, height // 2, width // 2, "cpu", torch.float32
        )
        self.text_ids = torch.zeros(TEXT_TOKENS, 3)

    def velocity(self, x: Tensor, t: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return the velocity of latents x (B, 4, 16, 16) at times t (B,), with one prompt for each."""
        distinct = sorted(set(prompts))
        prompt_index = torch.tensor([distinct.index(prompt) for prompt in prompts])
        padding = {
            "padding": "max_length",
            "max_length": TEXT_TOKENS,
            "truncation": True,
            "return_tensors": "pt",
        }
        pooled = self.text_encoder(self.tokenizer(distinct, **padding).input_ids).pooler_output
        tokens = self.text_encoder_2(self.tokenizer_2(distinct, **padding).input_ids)[0]
        packed = self.transformer(
            hidden_states=pack_latents(x),
            timestep=t,
            pooled_projections=pooled[prompt_index],
            encoder_hidden_states=tokens[prompt_index],
            txt_ids=self.text_ids,
            img_ids=self.image_ids,
            return_dict=False,
        )[0]
        return unpack_latents(packed, *LATENT[1:])

    def pipeline(self, vae: AutoencoderKL) -> FluxPipeline:
        """Make the diffusers pipeline."""
        return FluxPipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
            vae=vae,
            text_encoder=self.text_encoder,
            tokenizer=self.tokenizer,
            text_encoder_2=self.text_encoder_2,
            tokenizer_2=self.tokenizer_2,
            transformer=self.transformer,
        )
