"""Memory plans, counted with fake tensors from configurations alone."""

import json
from pathlib import Path

import pytest
import torch
from model_checks import kept_for_backward
from tiny_flux import tiny_flux

from noisetilt_kernels.models import FluxFlow, ModelError, load_pipeline
from noisetilt_kernels.models.memory import plan_memory

CONFIGS = {
    "transformer": {
        "_class_name": "FluxTransformer2DModel",
        "attention_head_dim": 128,
        "axes_dims_rope": [16, 56, 56],
        "guidance_embeds": True,
        "in_channels": 64,
        "joint_attention_dim": 4096,
        "num_attention_heads": 24,
        "num_layers": 19,
        "num_single_layers": 38,
        "pooled_projection_dim": 768,
    },
    "vae": {
        "_class_name": "AutoencoderKL",
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "latent_channels": 16,
        "layers_per_block": 2,
        "sample_size": 1024,
        "scaling_factor": 0.3611,
        "shift_factor": 0.1159,
        "use_post_quant_conv": False,
        "use_quant_conv": False,
    },
    "text_encoder": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
    },
    "text_encoder_2": {
        "d_model": 4096,
        "d_ff": 10240,
        "d_kv": 64,
        "num_layers": 24,
        "num_heads": 64,
        "feed_forward_proj": "gated-gelu",
    },
}
"""Configurations of FLUX.1 dev."""


COMPONENTS = {
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "text_encoder_2": ["transformers", "T5EncoderModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "tokenizer_2": ["transformers", "T5TokenizerFast"],
    "transformer": ["diffusers", "FluxTransformer2DModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


@pytest.fixture(scope="module")
def flux_dev(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the configurations of FLUX.1 dev and no weights."""
    folder = tmp_path_factory.mktemp("flux-dev")
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline", **COMPONENTS}))
    for name, config in CONFIGS.items():
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(config))
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps({"use_dynamic_shifting": True}))
    for name, length in {"tokenizer": 77, "tokenizer_2": 512}.items():
        (folder / name).mkdir()
        (folder / name / "tokenizer_config.json").write_text(json.dumps({"model_max_length": length}))
    return folder


@pytest.mark.slow
def test_flux_dev_has_its_known_sizes(flux_dev: Path) -> None:
    plan = plan_memory(flux_dev)
    assert (plan.shape, plan.pixels) == ((16, 128, 128), (3, 1024, 1024))
    assert plan.denoiser == 2 * 11_901_408_320
    assert plan.text_encoders == 2 * (123_060_480 + 4_762_310_656)
    assert plan.total == plan.denoiser + plan.vae + plan.text_encoders + plan.activations


@pytest.mark.slow
def test_activations_grow_with_batch_and_size(flux_dev: Path) -> None:
    small = plan_memory(flux_dev, height=256, width=512)
    assert small.shape == (16, 32, 64)
    assert plan_memory(flux_dev, height=256, width=512, micro_batch=3).activations == pytest.approx(
        3 * small.activations, rel=0.02
    )
    assert plan_memory(flux_dev, height=512, width=512).activations > 1.5 * small.activations
    offloaded = plan_memory(flux_dev, height=256, width=512, offload=True)
    assert small.total - offloaded.total == small.text_encoders


def test_planned_memory_matches_the_real_graph(tmp_path: Path) -> None:
    """Compare with the tensors that a real forward keeps, without gradient checkpointing."""
    tiny_flux().save_pretrained(tmp_path)
    planned = plan_memory(tmp_path, dtype=torch.float32, micro_batch=2)
    flow = FluxFlow(load_pipeline(tmp_path, dtype=torch.float32, device="cpu"))
    flow.encode(["a"])
    x = torch.randn(2, *flow.shape, requires_grad=True)
    networks = [flow.pipe.transformer, flow.pipe.vae]
    kept = kept_for_backward(networks, lambda: flow.velocity(x, 0.5, ["a", "a"]))
    kept += kept_for_backward(networks, lambda: flow.decode(x))
    # the difference is temporary memory
    assert kept <= planned.activations <= 1.3 * kept


def test_bad_models_and_sizes(flux_dev: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no model_index\.json"):
        plan_memory(tmp_path)
    with pytest.raises(ValueError, match="height must be a multiple of 16, got 500; 496 and 512 are nearest"):
        plan_memory(flux_dev, height=500, width=512)
    with pytest.raises(ValueError, match="height and width must be given together, got height 512 and width"):
        plan_memory(flux_dev, height=512)
