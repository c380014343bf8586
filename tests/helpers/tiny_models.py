"""Random pipelines of the diffusers classes, small enough to be made for every test.

FLUX and Wan are in tiny_flux.py and tiny_wan.py.
"""

from typing import Any

import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SanaSprintPipeline,
    SanaTransformer2DModel,
    SCMScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from tiny_clip import make_tokenizer
from tiny_flux import FLUX_VAE, LENGTH, tiny_autoencoder, tiny_t5, tiny_t5_tokenizer
from tiny_qwen import make_tokenizer as make_qwen_tokenizer
from tiny_qwen import make_vqa_model
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Gemma2Config,
    Gemma2Model,
    GemmaTokenizer,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    MistralConfig,
    PixtralVisionConfig,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
)

SIZE = {"height": 32, "width": 64}
"""Size of small images: latents (4, 16, 32)."""

_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_EULER = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


def tiny_sd_turbo(**scheduler: Any) -> StableDiffusionPipeline:
    """Make a pipeline like SD-Turbo, with further configuration of its scheduler."""
    torch.manual_seed(0)
    return StableDiffusionPipeline(
        vae=tiny_autoencoder(scaling_factor=0.18215),
        text_encoder=CLIPTextModel(_clip_config()).eval(),
        tokenizer=make_tokenizer(),
        unet=_unet(
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=16,
        ),
        scheduler=EulerDiscreteScheduler(**{**_EULER, "timestep_spacing": "trailing", **scheduler}),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def tiny_sdxl_turbo(**vae: Any) -> StableDiffusionXLPipeline:
    """Make a pipeline like SDXL-Turbo, with further configuration of its VAE."""
    torch.manual_seed(0)
    return StableDiffusionXLPipeline(
        vae=tiny_autoencoder(scaling_factor=0.13025, **vae),
        text_encoder=CLIPTextModel(_clip_config()).eval(),
        text_encoder_2=CLIPTextModelWithProjection(_clip_config()).eval(),
        tokenizer=make_tokenizer(),
        tokenizer_2=make_tokenizer(),
        unet=_unet(
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=32,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + 12,
        ),
        scheduler=EulerAncestralDiscreteScheduler(**_EULER, timestep_spacing="trailing"),
        add_watermarker=False,
    )


def tiny_sana_sprint(sigma_data: float = 0.5) -> SanaSprintPipeline:
    """Make a pipeline like SANA-Sprint, with a VAE that halves both sides."""
    torch.manual_seed(0)
    transformer = SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=16,
        sample_size=16,
        guidance_embeds=True,
        qk_norm="rms_norm_across_heads",
    )
    channels = {"encoder_block_out_channels": (8, 16), "decoder_block_out_channels": (8, 16)}
    vae = AutoencoderDC(
        latent_channels=4,
        attention_head_dim=8,
        encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"),
        **channels,
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
        upsample_block_type="interpolate",
        downsample_block_type="Conv",
        scaling_factor=0.41407,
    )
    special = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁")
    config = Gemma2Config(vocab_size=len(special) + len(_LETTERS), **_LANGUAGE_MODEL)
    return SanaSprintPipeline(
        tokenizer=GemmaTokenizer(vocab=_numbered(*special, *_LETTERS), merges=[]),
        text_encoder=Gemma2Model(config).eval(),
        vae=vae.eval(),
        transformer=transformer.eval(),
        scheduler=SCMScheduler(sigma_data=sigma_data),
    )


def tiny_z_image(**scheduler: Any) -> ZImagePipeline:
    """Make a pipeline like Z-Image-Turbo, with a VAE that halves both sides.

    Args:
        scheduler: further configuration of the scheduler.
    """
    torch.manual_seed(0)
    transformer = ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[4, 6, 6],
        axes_lens=[600, 256, 256],
    )
    with torch.no_grad():  # initially zero, which would hide padding
        transformer.x_pad_token.normal_()
        transformer.cap_pad_token.normal_()
    return ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**{"shift": 3.0, **scheduler}),
        vae=tiny_autoencoder(**FLUX_VAE),
        text_encoder=Qwen3Model(Qwen3Config(vocab_size=len(_LETTERS) + 2, **_LANGUAGE_MODEL)).eval(),
        tokenizer=_chat_tokenizer("user {{ message['content'] }} end"),
        transformer=transformer.eval(),
    )


def tiny_qwen_image() -> QwenImagePipeline:
    """Make a pipeline like Qwen-Image, with a VAE that halves both sides."""
    torch.manual_seed(0)
    transformer = QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        axes_dims_rope=(4, 6, 6),
    )
    vae = AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 2],
        num_res_blocks=1,
        temperal_downsample=[True],
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[1.5, 0.8, 1.1, 2.0],
    )
    pipe = QwenImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, max_shift=0.9, max_image_seq_len=8192, shift_terminal=0.02
        ),
        vae=vae.eval(),
        text_encoder=make_vqa_model(),
        tokenizer=make_qwen_tokenizer(),
        transformer=transformer.eval(),
    )
    return without_template(pipe)


def without_template(pipe: QwenImagePipeline) -> QwenImagePipeline:
    """Drop the instruction before the prompt; in a tiny model it would hide the difference of prompts."""
    pipe.prompt_template_encode, pipe.prompt_template_encode_start_idx = "{}.", 0
    return pipe


def tiny_sd3(**scheduler: Any) -> StableDiffusion3Pipeline:
    """Make a pipeline like Stable Diffusion 3.5 medium, with a VAE that halves both sides.

    Args:
        scheduler: further configuration of the scheduler.
    """
    torch.manual_seed(0)
    transformer = SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=36,
        caption_projection_dim=32,
        pooled_projection_dim=24,
        pos_embed_max_size=20,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )
    return StableDiffusion3Pipeline(
        transformer=transformer.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(**{"shift": 3.0, **scheduler}),
        vae=tiny_autoencoder(**FLUX_VAE),
        text_encoder=CLIPTextModelWithProjection(_clip_config()).eval(),
        tokenizer=make_tokenizer(),
        text_encoder_2=CLIPTextModelWithProjection(_clip_config()).eval(),
        tokenizer_2=make_tokenizer(),
        text_encoder_3=tiny_t5(36),
        tokenizer_3=tiny_t5_tokenizer(model_max_length=LENGTH),
    )


def tiny_flux2() -> Flux2Pipeline:
    """Make a pipeline like FLUX.2 dev, with a VAE that halves both sides."""
    torch.manual_seed(0)
    text = MistralConfig(vocab_size=len(_LETTERS) + 2, **{**_LANGUAGE_MODEL, "num_hidden_layers": 30})
    vision = PixtralVisionConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, image_size=28
    )
    return Flux2Pipeline(
        text_encoder=Mistral3ForConditionalGeneration(
            Mistral3Config(text_config=text, vision_config=vision, image_token_index=0)
        ).eval(),
        # the real one is the processor of Pixtral, which has the same methods for text
        tokenizer=_chat_tokenizer("{{ message['content'][0]['text'][-40:] }}"),
        **_flux2_parts(guidance_embeds=True),
    )


def tiny_flux2_klein(is_distilled: bool = False) -> Flux2KleinPipeline:
    """Make a pipeline like FLUX.2 klein, with a VAE that halves both sides."""
    torch.manual_seed(0)
    config = Qwen3Config(vocab_size=len(_LETTERS) + 2, **{**_LANGUAGE_MODEL, "num_hidden_layers": 27})
    return Flux2KleinPipeline(
        text_encoder=Qwen3ForCausalLM(config).eval(),
        tokenizer=_chat_tokenizer("user {{ message['content'] }} end"),
        is_distilled=is_distilled,
        **_flux2_parts(guidance_embeds=False),
    )


def _flux2_parts(guidance_embeds: bool) -> dict[str, Any]:
    """Make scheduler, transformer and VAE of FLUX.2; the VAE has random statistics of latents."""
    transformer = Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=3 * _LANGUAGE_MODEL["hidden_size"],
        timestep_guidance_channels=32,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=guidance_embeds,
    )
    vae = tiny_autoencoder(AutoencoderKLFlux2)
    vae.bn.running_mean.normal_()
    vae.bn.running_var.uniform_(0.5, 2.0)
    return {
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        "transformer": transformer.eval(),
        "vae": vae,
    }


def _chat_tokenizer(template: str) -> Qwen2Tokenizer:
    """Make a tokenizer of letters with a chat template for one message."""
    return Qwen2Tokenizer(
        vocab=_numbered("<|endoftext|>", "Ġ", *_LETTERS),
        merges=[],
        chat_template=f"{{% for message in messages %}}{template}{{% endfor %}}",
    )


_LANGUAGE_MODEL = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
}


def _numbered(*tokens: str) -> dict[str, int]:
    return {token: number for number, token in enumerate(tokens)}


def _clip_config() -> CLIPTextConfig:
    end = len(make_tokenizer()) - 1
    return CLIPTextConfig(
        vocab_size=end + 1,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=12,
        bos_token_id=end - 1,
        eos_token_id=end,
        pad_token_id=end,
    )


def _unet(**config: Any) -> UNet2DConditionModel:
    """Make a U-Net for latents (4, 16, 32), with further configuration."""
    unet = UNet2DConditionModel(
        sample_size=(16, 32),
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        **config,
    )
    return unet.eval()
