"""Components of pipelines: missing, unfitting and quantised weights, and models of another kind."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import FluxTransformer2DModel, WanTransformer3DModel
from safetensors.torch import load_file, save_file
from tiny_flux import tiny_flux
from tiny_ltx import tiny_ltx
from tiny_models import (
    tiny_flux2,
    tiny_flux2_klein,
    tiny_qwen_image,
    tiny_sana_sprint,
    tiny_sd3,
    tiny_sd_turbo,
    tiny_sdxl_turbo,
    tiny_z_image,
)
from tiny_wan import tiny_wan, tiny_wan_5b, tiny_wan_a14b
from torch import Tensor

from noisetilt_kernels import hub
from noisetilt_kernels.models import ModelError, family_of, load_pipeline
from noisetilt_kernels.models.fine_tuned import _load_bare_weights
from noisetilt_kernels.models.memory import plan_memory

MAKERS: dict[str, Callable[[], Any]] = {
    "flux": tiny_flux,
    "wan": tiny_wan,
    "sd": tiny_sd_turbo,
    "sdxl": tiny_sdxl_turbo,
    "sana": tiny_sana_sprint,
    "z-image": tiny_z_image,
    "qwen": tiny_qwen_image,
    "sd3": tiny_sd3,
    "flux2": tiny_flux2,
    "klein": tiny_flux2_klein,
    "ltx": tiny_ltx,
    "wan 5b": tiny_wan_5b,
    "wan a14b": tiny_wan_a14b,
}
COMPONENTS = {
    "flux": ["transformer", "vae", "text_encoder", "text_encoder_2"],
    "wan": ["transformer", "vae", "text_encoder"],
    "sd": ["unet", "vae", "text_encoder"],
    "sdxl": ["unet", "vae", "text_encoder", "text_encoder_2"],
    "sana": ["transformer", "vae", "text_encoder"],
    "z-image": ["transformer", "vae", "text_encoder"],
    "qwen": ["transformer", "vae", "text_encoder"],
    "sd3": ["transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3"],
    "flux2": ["transformer", "vae", "text_encoder"],
    "klein": ["transformer", "vae", "text_encoder"],
    "ltx": ["transformer", "vae", "text_encoder"],
    "wan 5b": ["transformer", "vae"],
    "wan a14b": ["transformer", "transformer_2"],
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folder of a pipeline of each family."""
    root = tmp_path_factory.mktemp("saved")
    for name, make in MAKERS.items():
        make().save_pretrained(root / name)
    return {name: root / name for name in MAKERS}


def refusal(folder: object, **options: Any) -> str:
    """Return the message of the ModelError, and check that it is one line without a cause."""
    with pytest.raises(ModelError) as caught:
        load_pipeline(folder, **{"device": "cpu", "dtype": torch.float32, **options})
    assert "\n" not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return str(caught.value)


def weights_of(folder: Path) -> Path:
    return next(folder.glob("*.safetensors"))


def change(folder: Path, edit: Callable[[dict[str, Tensor]], None]) -> None:
    """Edit the weights of a network, whose file may be linked to another one."""
    file = weights_of(folder)
    tensors = load_file(file)
    edit(tensors)
    file.unlink()
    save_file(tensors, file, metadata={"format": "pt"})


def end_of(name: str) -> str:
    """Return the end of a weight's name; encoders that also read images are saved with other prefixes."""
    return ".".join(name.split(".")[-2:])


@pytest.mark.parametrize(
    ("family", "component"), [(family, name) for family, names in COMPONENTS.items() for name in names]
)
def test_missing_and_unfitting_weights(
    saved: dict[str, Path], tmp_path: Path, family: str, component: str
) -> None:
    folder = Path(shutil.copytree(saved[family], tmp_path / "copy"))
    names = sorted(load_file(weights_of(folder / component)))
    wide, lost = names[0], names[len(names) // 2]
    owner = f"the {component} of {str(folder)!r}"
    needed = tuple(load_file(weights_of(folder / component))[wide].shape)
    change(folder / component, lambda tensors: tensors.update({wide: torch.zeros(3, 1, 5)}))
    assert refusal(folder).endswith(
        f"{end_of(wide)} of {owner} has the shape (3, 1, 5), but the model needs {needed}; "
        "download or save it again"
    )
    change(folder / component, lambda tensors: tensors.pop(lost))
    message = refusal(folder)
    assert message.startswith(f"the weights of {owner} lack ")
    assert message.endswith(f"{end_of(lost)}; download or save it again")
    change(folder / component, lambda tensors: [tensors.clear(), tensors.update(other=torch.zeros(1))])
    assert f"the weights of {owner} lack " in refusal(folder)


@pytest.mark.parametrize("component", ["transformer", "vae"])
def test_weights_that_the_configuration_leaves_out(
    saved: dict[str, Path], tmp_path: Path, component: str
) -> None:
    folder = Path(shutil.copytree(saved["flux"], tmp_path / "copy"))
    change(folder / component, lambda tensors: tensors.update(further=torch.zeros(1)))
    assert refusal(folder) == (
        f"the weights of the {component} of {str(folder)!r} have an unexpected further; "
        "download or save it again"
    )


def test_text_encoders_may_come_from_larger_models_with_tied_weights(
    saved: dict[str, Path], tmp_path: Path
) -> None:
    """Real text encoders hold buffers and decoders, and lack copies of tied weights."""
    folder = Path(shutil.copytree(saved["flux"], tmp_path / "copy"))
    assert "encoder.embed_tokens.weight" not in load_file(weights_of(folder / "text_encoder_2"))
    change(
        folder / "text_encoder",
        lambda tensors: [
            tensors.update({f"text_model.{name}": tensors.pop(name) for name in list(tensors)}),
            tensors.update({"text_model.embeddings.position_ids": torch.arange(24)[None]}),
        ],
    )
    change(
        folder / "text_encoder_2", lambda tensors: tensors.update({"decoder.final.weight": torch.zeros(1)})
    )
    pipe = load_pipeline(folder, device="cpu", dtype=torch.float32)
    expected = tiny_flux()
    for name in ("text_encoder", "text_encoder_2"):
        loaded, made = (getattr(one, name).state_dict() for one in (pipe, expected))
        assert loaded.keys() == made.keys() and all(torch.equal(loaded[key], made[key]) for key in made)


@pytest.mark.parametrize(
    ("component", "settings"),
    [("transformer", {"weights_dtype": "int8"}), ("text_encoder", {"weights": "int8"})],
)
def test_quantised_networks_name_their_package(
    saved: dict[str, Path], tmp_path: Path, component: str, settings: dict[str, str]
) -> None:
    """The package of quanto is not among those of the tests."""
    folder = Path(shutil.copytree(saved["flux"], tmp_path / "copy"))
    file = folder / component / "config.json"
    quantised = {"quant_method": "quanto", **settings}
    file.write_text(json.dumps({**json.loads(file.read_text()), "quantization_config": quantised}))
    message = refusal(folder)
    assert message.startswith(
        f"the {component} of {str(folder)!r} is quantised with quanto, which cannot be loaded here: "
    )
    assert "download" not in message


def test_variants(saved: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "variant"
    tiny_flux().save_pretrained(folder, variant="fp16")
    assert refusal(folder) == (
        f"the weights of the text_encoder of {str(folder)!r} are there only as variant fp16; "
        "use variant='fp16', or --variant fp16 in the commands"
    )
    pipe = load_pipeline(folder, device="cpu", dtype=torch.float32, variant="fp16")
    mixed = Path(shutil.copytree(saved["flux"], tmp_path / "mixed"))
    shutil.copytree(folder / "vae", mixed / "vae", dirs_exist_ok=True)
    whole = load_pipeline(mixed, device="cpu", dtype=torch.float32, variant="fp16")
    for one in (pipe, whole):  # networks without the variant have their default weights
        assert torch.equal(one.transformer.x_embedder.weight, tiny_flux().transformer.x_embedder.weight)
    assert refusal(saved["flux"], variant="fp61") == (
        f"no weights of {str(saved['flux'])!r} have the variant 'fp61'; leave it out"
    )


def test_folders_that_were_saved_without_components(tmp_path: Path) -> None:
    pipe = tiny_flux()
    pipe.text_encoder = pipe.text_encoder_2 = None
    pipe.save_pretrained(tmp_path)
    assert refusal(tmp_path) == (
        f"{str(tmp_path)!r} was saved without its text_encoder; save it again with all components, "
        "or load it with text_encoders=False"
    )
    assert load_pipeline(tmp_path, device="cpu", text_encoders=False).text_encoder is None
    pipe.vae = None
    pipe.save_pretrained(tmp_path)
    assert refusal(tmp_path, text_encoders=False) == (
        f"{str(tmp_path)!r} was saved without its vae; save it again with all components"
    )


# ---- models of another kind ----


def edit_json(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def without_weights(saved: Path, folder: Path) -> Path:
    """Copy a pipeline without its weights, so that reading them fails."""
    return Path(shutil.copytree(saved, folder, ignore=shutil.ignore_patterns("*.safetensors")))


@pytest.mark.parametrize("family", ["sd", "sdxl"])
@pytest.mark.parametrize("spacing", ["leading", "linspace"])
def test_models_of_many_steps_are_no_one_step_models(
    saved: dict[str, Path], tmp_path: Path, family: str, spacing: str
) -> None:
    folder = without_weights(saved[family], tmp_path / "base")
    edit_json(folder / "scheduler" / "scheduler_config.json", timestep_spacing=spacing)
    problem = (
        "must have a scheduler whose single step starts at pure noise, near time 1000, got "
        f"{1 if spacing == 'leading' else 0} with timestep_spacing {spacing!r}; one-step models have "
        "'trailing', and a model that needs more steps cannot be used"
    )
    assert refusal(folder) == f"{str(folder)!r} {problem}"
    pipe = MAKERS[family]()
    pipe.scheduler = pipe.scheduler.from_config(pipe.scheduler.config, timestep_spacing=spacing)
    adapter: Any = family_of(pipe).one_step
    with pytest.raises(ValueError) as caught:
        adapter(pipe)
    assert str(caught.value) == f"{adapter.__name__}: pipe {problem}"


@pytest.mark.parametrize("family", MAKERS)
def test_channels_must_be_those_of_the_vae(saved: dict[str, Path], tmp_path: Path, family: str) -> None:
    """A denoiser for inpainting, editing or control has further input channels."""
    folder = without_weights(saved[family], tmp_path / "control")
    pipe = MAKERS[family]()
    denoiser = COMPONENTS[family][0]
    channels = 16 if family in ("flux", "flux2", "klein", "qwen") else 4
    outputs = 4 if family == "qwen" else channels  # of one position of its 2x2 patches
    edit_json(folder / denoiser / "config.json", in_channels=2 * channels, out_channels=outputs)
    found = 2 * channels if family == "z-image" else channels  # Z-Image has one number for both
    problem = (
        f"must have a {denoiser} with {channels} input and output channels for the 4 channels of its VAE, "
        f"got {2 * channels} and {found}; models for inpainting, editing or control are not supported"
    )
    if family != "z-image":
        assert refusal(folder) == f"{str(folder)!r} {problem}"
    else:
        assert f"{str(folder)!r} must have a transformer with 4 input" in refusal(folder)
    with pytest.raises(ModelError, match="models for inpainting, editing or control are not supported"):
        plan_memory(folder, one_step=family in ("sd", "sdxl", "sana"))
    getattr(pipe, denoiser).register_to_config(in_channels=2 * channels)
    found_family = family_of(pipe)
    adapter: Any = found_family.flow or found_family.one_step
    with pytest.raises(ValueError, match=f"{adapter.__name__}: pipe must have a {denoiser} with {channels} "):
        adapter(pipe)


def test_sana_without_embedded_guidance_is_refused_by_its_configuration(
    saved: dict[str, Path], tmp_path: Path
) -> None:
    folder = without_weights(saved["sana"], tmp_path / "sana")
    edit_json(folder / "transformer" / "config.json", guidance_embeds=False)
    assert refusal(folder) == (
        f"{str(folder)!r} must have a transformer with guidance_embeds, as SANA-Sprint has"
    )


def test_wan22_without_its_second_transformer_is_refused_by_its_index_alone(
    saved: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    index = tmp_path / "model_index.json"
    index.write_text((saved["wan"] / "model_index.json").read_text())
    edit_json(index, transformer_2=[None, None], boundary_ratio=0.875)
    asked: list[str] = []

    def download(source: str, file: str) -> Path:
        asked.append(file)
        return tmp_path / file

    monkeypatch.setattr(hub, "download", download)
    monkeypatch.setattr(
        diffusers.WanPipeline, "download", lambda *arguments, **options: pytest.fail("downloads")
    )
    assert refusal("some/wan2.2") == (
        "'some/wan2.2' must have a transformer_2, which takes over at its boundary_ratio of 0.875; "
        "load it with all components"
    )
    assert asked == ["model_index.json"]


def test_models_of_the_hub(saved: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Configurations are read before the weights are downloaded, and only what is needed is downloaded."""
    asked: list[Any] = []

    def download(source: str, file: str) -> Path:
        asked.append(file)
        return saved["flux"] / file

    def download_all(source: str, **options: Any) -> Path:
        asked.append((source, options))
        return saved["flux"]

    monkeypatch.setattr(hub, "download", download)
    monkeypatch.setattr(hub, "offline", lambda: False)
    monkeypatch.setattr(diffusers.FluxPipeline, "download", download_all)
    pipe = load_pipeline("some/flux", device="cpu", text_encoders=False)
    assert pipe.text_encoder is pipe.tokenizer_2 is None
    assert asked.pop() == (
        "some/flux",
        {
            "use_safetensors": True,
            "variant": None,
            "local_files_only": False,
            "text_encoder": None,
            "text_encoder_2": None,
            "tokenizer": None,
            "tokenizer_2": None,
        },
    )
    assert asked[0] == "model_index.json" and all(file.endswith("config.json") for file in asked[1:])


# ---- sizes ----


@pytest.mark.parametrize("family", MAKERS)
@pytest.mark.parametrize("side", ["height", "width"])
def test_height_and_width_are_given_together(family: str, side: str) -> None:
    pipe = MAKERS[family]()
    found = family_of(pipe)
    adapter: Any = found.flow or found.one_step
    with pytest.raises(ValueError, match=f"{adapter.__name__}: height and width must be given together"):
        adapter(pipe, **{side: 64})


@pytest.mark.parametrize(
    ("family", "options", "message"),
    [
        ("wan", {"height": 1040, "width": 64}, "height must be at most 1024, the last position"),
        ("wan", {"height": 64, "width": 2048}, "width must be at most 1024, the last position"),
        ("wan", {"num_frames": 257}, "num_frames must be at most 253, the last position"),
        ("z-image", {"height": 64, "width": 1028}, "width must be at most 1024, the last position"),
    ],
)
def test_sizes_beyond_the_positions_that_a_model_knows(
    family: str, options: dict[str, int], message: str
) -> None:
    pipe = MAKERS[family]()
    adapter: Any = family_of(pipe).flow
    with pytest.raises(ValueError, match=f"{message} that the model knows, got"):
        adapter(pipe, **options)


# ---- original names ----


def original_wan(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return weights of Wan with the names of its authors."""
    renamed = {}
    for name, tensor in tensors.items():
        for new, old in (
            ("condition_embedder.time_embedder.linear_1", "time_embedding.0"),
            ("condition_embedder.time_embedder.linear_2", "time_embedding.2"),
            ("condition_embedder.text_embedder.linear_1", "text_embedding.0"),
            ("condition_embedder.text_embedder.linear_2", "text_embedding.2"),
            ("condition_embedder.time_proj", "time_projection.1"),
            ("attn1", "self_attn"),
            ("attn2", "cross_attn"),
            ("to_out.0", "o"),
            ("to_q", "q"),
            ("to_k", "k"),
            ("to_v", "v"),
            ("ffn.net.0.proj", "ffn.0"),
            ("ffn.net.2", "ffn.2"),
            ("norm2", "norm3"),
            ("proj_out", "head.head"),
        ):
            name = name.replace(new, old)
        if name.endswith("scale_shift_table"):
            name = name.replace("scale_shift_table", "modulation" if "." in name else "head.modulation")
        renamed[name] = tensor
    return renamed


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model.", "module.", "_orig_mod."])
@pytest.mark.parametrize("original", [False, True])
def test_denoisers_with_original_names(
    saved: dict[str, Path], tmp_path: Path, prefix: str, original: bool
) -> None:
    tensors = tiny_wan(seed=1).transformer.state_dict()
    if original:
        tensors = original_wan(tensors)
        assert "blocks.0.self_attn.q.weight" in tensors and "head.modulation" in tensors
    file = tmp_path / "tuned.safetensors"
    save_file({prefix + name: tensor.clone() for name, tensor in tensors.items()}, file)
    loaded = load_pipeline(saved["wan"], device="cpu", dtype=torch.float32, denoiser=file).transformer
    assert isinstance(loaded, WanTransformer3DModel)
    expected = tiny_wan(seed=1).transformer.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.state_dict().items())


def test_z_image_with_original_names(saved: dict[str, Path], tmp_path: Path) -> None:
    tensors = dict(load_file(weights_of(saved["z-image"] / "transformer")))
    for name in [name for name in tensors if name.endswith("attention.to_q.weight")]:
        q, k, v = (tensors.pop(name.replace("to_q", f"to_{one}")) for one in "qkv")
        tensors[name.replace("to_q", "qkv")] = torch.cat([q, k, v])
    renamed = {}
    for name, tensor in tensors.items():
        for new, old in (
            ("all_final_layer.2-1.", "final_layer."),
            ("all_x_embedder.2-1.", "x_embedder."),
            ("attention.norm_q.", "attention.q_norm."),
            ("attention.norm_k.", "attention.k_norm."),
            ("attention.to_out.0.", "attention.out."),
        ):
            name = name.replace(new, old)
        renamed[f"model.diffusion_model.{name}"] = tensor
    file = tmp_path / "tuned.safetensors"
    save_file(renamed, file)
    loaded = load_pipeline(saved["z-image"], device="cpu", dtype=torch.float32, denoiser=file).transformer
    expected = load_file(weights_of(saved["z-image"] / "transformer"))
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.state_dict().items())


def test_a_unet_in_a_whole_original_checkpoint(saved: dict[str, Path], tmp_path: Path) -> None:
    blocks = {
        "conv_in": "input_blocks.0.0",
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "down_blocks.0.resnets.0": "input_blocks.1.0",
        "down_blocks.0.attentions.0": "input_blocks.1.1",
        "down_blocks.0.downsamplers.0.conv": "input_blocks.2.0.op",
        "down_blocks.1.resnets.0": "input_blocks.3.0",
        "mid_block.resnets.0": "middle_block.0",
        "mid_block.attentions.0": "middle_block.1",
        "mid_block.resnets.1": "middle_block.2",
        "up_blocks.0.resnets.0": "output_blocks.0.0",
        "up_blocks.0.resnets.1": "output_blocks.1.0",
        "up_blocks.0.upsamplers.0.conv": "output_blocks.1.1.conv",
        "up_blocks.1.resnets.0": "output_blocks.2.0",
        "up_blocks.1.attentions.0": "output_blocks.2.1",
        "up_blocks.1.resnets.1": "output_blocks.3.0",
        "up_blocks.1.attentions.1": "output_blocks.3.1",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
    }
    layers = {
        "norm1": "in_layers.0",
        "conv1": "in_layers.2",
        "time_emb_proj": "emb_layers.1",
        "norm2": "out_layers.0",
        "conv2": "out_layers.3",
        "conv_shortcut": "skip_connection",
    }
    expected = load_file(weights_of(saved["sd"] / "unet"))
    renamed = {"first_stage_model.decoder.conv_in.weight": torch.zeros(1)}
    for name, tensor in expected.items():
        block = next(block for block in blocks if name.startswith(f"{block}."))
        rest = name.removeprefix(f"{block}.")
        if "resnets" in block:
            layer, kind = rest.split(".")
            rest = f"{layers[layer]}.{kind}"
        renamed[f"model.diffusion_model.{blocks[block]}.{rest}"] = tensor
    file = tmp_path / "tuned.safetensors"
    save_file(renamed, file)
    loaded = load_pipeline(saved["sd"], device="cpu", dtype=torch.float32, denoiser=file).unet
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.state_dict().items())


def by_rows(tensor: Tensor) -> Tensor:
    """Return a tensor of the same shape that holds row numbers and takes no memory for the columns."""
    rows = torch.arange(float(len(tensor)))
    return rows.reshape(-1, *[1] * (tensor.ndim - 1)).expand(tensor.shape)


def test_flux_with_original_names() -> None:
    """Black Forest Labs fuse projections, and order shift and scale differently.

    diffusers' conversion supports the real width only.
    """
    config = {"num_layers": 1, "num_single_layers": 1, "guidance_embeds": True}
    with torch.device("meta"):
        needed = FluxTransformer2DModel(**config).state_dict()
    width, mlp = 3072, 12288
    double, single = "transformer_blocks.0.", "single_transformer_blocks.0."
    renamed = {
        "img_in": "x_embedder",
        "txt_in": "context_embedder",
        "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
        "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
        "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
        "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
        "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
        "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
        "double_blocks.0.img_mod.lin": f"{double}norm1.linear",
        "double_blocks.0.txt_mod.lin": f"{double}norm1_context.linear",
        "double_blocks.0.img_mlp.0": f"{double}ff.net.0.proj",
        "double_blocks.0.img_mlp.2": f"{double}ff.net.2",
        "double_blocks.0.txt_mlp.0": f"{double}ff_context.net.0.proj",
        "double_blocks.0.txt_mlp.2": f"{double}ff_context.net.2",
        "double_blocks.0.img_attn.proj": f"{double}attn.to_out.0",
        "double_blocks.0.txt_attn.proj": f"{double}attn.to_add_out",
        "single_blocks.0.modulation.lin": f"{single}norm.linear",
        "single_blocks.0.linear2": f"{single}proj_out",
        "final_layer.linear": "proj_out",
    }
    tensors: dict[str, Tensor] = {}
    for old, new in renamed.items():
        for kind in ("weight", "bias"):
            tensors[f"{old}.{kind}"] = by_rows(needed[f"{new}.{kind}"])
    for kind, columns in (("weight", (width,)), ("bias", ())):
        for name in ("img", "txt"):
            tensors[f"double_blocks.0.{name}_attn.qkv.{kind}"] = by_rows(torch.empty(3 * width, *columns))
        tensors[f"single_blocks.0.linear1.{kind}"] = by_rows(torch.empty(3 * width + mlp, *columns))
        tensors[f"final_layer.adaLN_modulation.1.{kind}"] = by_rows(torch.empty(2 * width, *columns))
    for name in ("double_blocks.0.img_attn", "double_blocks.0.txt_attn", "single_blocks.0"):
        for kind in ("query", "key"):
            tensors[f"{name}.norm.{kind}_norm.scale"] = torch.ones(128)
    network = _load_bare_weights(FluxTransformer2DModel, "it", tensors, config, torch.float32)
    loaded = network.state_dict()
    assert {name: tensor.shape for name, tensor in loaded.items()} == {
        name: tensor.shape for name, tensor in needed.items()
    }
    first_rows = {
        f"{double}attn.to_q": 0,
        f"{double}attn.to_k": width,
        f"{double}attn.to_v": 2 * width,
        f"{double}attn.add_k_proj": width,
        f"{single}attn.to_v": 2 * width,
        f"{single}proj_mlp": 3 * width,
        "norm_out.linear": width,  # the scale first
        f"{double}ff.net.2": 0,
    }
    for name, row in first_rows.items():
        assert loaded[f"{name}.weight"][0, 0] == loaded[f"{name}.bias"][0] == row
