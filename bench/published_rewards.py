"""Published code of ImageReward, HPSv3 and VideoReward with small random weights, on old packages.

`bench.reward_parity` starts this module as a second process, because the code needs transformers 4.45.2:

    PYTHONPATH=PACKAGES:PACKAGES/VideoAlign:. python -m bench.published_rewards NAME FOLDER

It reads FOLDER/images.pt, writes the weights into FOLDER/weights in their published format, and writes the
values and their gradient to FOLDER/published.pt. Networks, texts, tokens, patches and the choice of frames
are those of the published code. Replaced are:

    packages for training, and torchvision      empty modules
    the reader of a video file                  the video
    vision model of ImageReward                 the same class with small sizes, which are fixed in the code
"""

import json
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from .reward_parity import CLIP, PROMPTS, normalized, randomized

EMPTY = ("clip", "datasets", "fire", "pandas", "tensorboard", "torchvision", "trl")
"""Packages that the published modules import, but that the score does not need."""


class EmptyClass(type):
    """Kind of a class in which every name is a text."""

    def __getattr__(cls, name: str) -> str:
        if name.startswith("__"):
            raise AttributeError(name)
        return name


class EmptyModule(ModuleType):
    """A module in which every name is an empty class."""

    __path__: list[str] = []  # noqa: RUF012, as in every package

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        made = EmptyClass(name, (), {"__init__": lambda self, *args, **options: None})
        setattr(self, name, made)
        return made


class EmptyModules(MetaPathFinder, Loader):
    """Finder of the modules of `EMPTY`."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if name.partition(".")[0] in EMPTY or name == "torch.utils.tensorboard":
            return ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return EmptyModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


def imagereward(folder: Path, images: Tensor) -> Tensor:
    """Score by the package image-reward, with a small vision model and two layers of BERT."""
    # the package's own __init__ imports its training
    package = ModuleType("ImageReward")
    package.__path__ = [str(Path(path) / "ImageReward") for path in sys.path]
    sys.modules["ImageReward"] = package
    from ImageReward.ImageReward import ImageReward
    from ImageReward.models.BLIP import blip_pretrain
    from ImageReward.models.BLIP.vit import VisionTransformer
    from transformers import BertTokenizer

    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{one}" for one in letters)]
    (folder / "vocab.txt").write_text("\n".join(words))
    tokenizer = BertTokenizer(str(folder / "vocab.txt"))
    tokenizer.add_special_tokens({"bos_token": "[DEC]", "additional_special_tokens": ["[ENC]"]})
    tokenizer.save_pretrained(folder)
    settings = {"vocab_size": len(tokenizer), "num_hidden_layers": 2, "intermediate_size": 64}
    settings |= {"max_position_embeddings": 40, "add_cross_attention": True, "fusion_layer": 0}
    (folder / "med_config.json").write_text(json.dumps(settings))
    vision = VisionTransformer(img_size=224, patch_size=16, embed_dim=128, depth=2, num_heads=2)
    blip_pretrain.create_vit = lambda *sizes: (vision, 128)
    blip_pretrain.init_tokenizer = lambda: tokenizer
    model = randomized(ImageReward(str(folder / "med_config.json")))
    torch.save(model.state_dict(), folder / "ImageReward.pt")
    tokens = tokenizer(PROMPTS, padding="max_length", truncation=True, max_length=35, return_tensors="pt")
    scores: Tensor = model.score_gard(tokens.input_ids, tokens.attention_mask, normalized(images, *CLIP))
    return scores[:, 0]


def hpsv3(folder: Path, images: Tensor) -> Tensor:
    """Score by the package hpsv3, from its settings to its batch of tokens and patches."""
    import hpsv3
    import yaml
    from hpsv3.inference import _MODEL_CONFIG_PATH, HPSv3RewardInferencer, create_model_and_processor
    from PIL import Image
    from safetensors.torch import save_file

    save_base(folder / "base")
    for part in ("config.json", "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"):
        (folder / part).write_bytes((folder / "base" / part).read_bytes())
    settings = yaml.safe_load((_MODEL_CONFIG_PATH / "HPSv3_7B.yaml").read_text())
    settings |= {"model_name_or_path": str(folder / "base"), "bf16": False, "torch_dtype": "float32"}
    (folder / "settings.yaml").write_text(yaml.safe_dump(settings))

    def saved(**options: Any) -> Any:
        model, *others = create_model_and_processor(**options)
        save_file(randomized(model, 0.3).state_dict(), folder / "HPSv3.safetensors")
        return model, *others

    hpsv3.inference.create_model_and_processor = saved
    reward = HPSv3RewardInferencer(
        str(folder / "settings.yaml"), str(folder / "HPSv3.safetensors"), device="cpu"
    )
    colors = images.detach().movedim(1, -1).mul(255).round().byte().numpy()
    batch = reward.prepare_batch([Image.fromarray(one) for one in colors], PROMPTS)
    return scored(reward, batch, "pixel_values", "images", images[:, None])[:, 0]


def videoreward(folder: Path, videos: Tensor) -> Tensor:
    """Score by the code of VideoAlign, from its settings to its frames, tokens and patches; LoRA by PEFT."""
    import inference
    import vision_process

    save_base(folder)
    settings: dict[str, dict[str, Any]] = {
        "data_config": {
            "meta_data": "",
            "data_dir": "",
            "eval_dim": ["VQ", "MQ", "TA"],
            "fps": 2.0,
            "max_frame_pixels": 256 * 28 * 28,
            "prompt_template_type": "detailed_special",
        },
        "model_config": {
            "model_name_or_path": str(folder),
            "output_dim": 1,
            "reward_token": "special",
            "torch_dtype": "float32",
            "use_special_tokens": True,
        },
        "peft_lora_config": {
            "lora_enable": True,
            "lora_r": 4,
            "lora_alpha": 8,
            "lora_namespan_exclude": ["lm_head", "rm_head", "embed_tokens", "visual"],
        },
        "inference_config": {
            **{"VQ_mean": 0.3, "VQ_std": 0.5},
            **{"MQ_mean": -0.2, "MQ_std": 2.0},
            **{"TA_mean": 0.1, "TA_std": 1.25},
        },
    }
    (folder / "model_config.json").write_text(json.dumps(settings))

    def saved(model: Any, *source: Any) -> Any:
        (folder / "checkpoint-1").mkdir()
        torch.save(randomized(model, 0.3).state_dict(), folder / "checkpoint-1" / "model.pth")
        return model, 1

    options = inference.TrainingConfig
    inference.TrainingConfig = lambda **given: options(**{**given, "disable_flash_attn2": True})
    inference.load_model_from_checkpoint = saved
    reward = inference.VideoVLMRewardInference(str(folder), device="cpu", dtype=torch.float32)
    frames, chosen = videos.transpose(1, 2), []

    def read_video(path: str, **options: Any) -> Any:
        return frames[int(path.rpartition("/")[2])], None, {"video_fps": 16.0}

    def resize(video: Tensor, size: list[int], **options: Any) -> Tensor:
        assert list(video.shape[2:]) == size
        chosen.append(video)
        return (video.detach() * 255).round()

    vision_process.torchvision.__version__ = "0.19.0"
    vision_process.io.read_video = read_video
    vision_process.transforms.functional = SimpleNamespace(resize=resize)
    batch = reward.prepare_batch(list(map(str, range(len(videos)))), PROMPTS)
    parts = scored(reward, batch, "pixel_values_videos", "videos", torch.stack(chosen))
    total: Tensor = sum(reward._norm(dict(zip(("VQ", "MQ", "TA"), parts.T, strict=True))).values())
    return total


def save_base(folder: Path) -> None:
    """Save a small Qwen2-VL with its tokenizer and image processor, as transformers 4.45.2 does."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import (
        Qwen2TokenizerFast,
        Qwen2VLConfig,
        Qwen2VLForConditionalGeneration,
        Qwen2VLImageProcessor,
        Qwen2VLProcessor,
    )

    folder.mkdir(exist_ok=True)
    (folder / "vocab.json").write_text(
        json.dumps({letter: number for number, letter in enumerate(sorted(ByteLevel.alphabet()))})
    )
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = Qwen2TokenizerFast(str(folder / "vocab.json"), str(folder / "merges.txt"))
    marks = ["im_start", "im_end", "vision_start", "vision_end", "image_pad", "video_pad"]
    tokenizer.add_special_tokens({"additional_special_tokens": [f"<|{mark}|>" for mark in marks]})
    chat = (
        "{% for message in messages %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
        "{% if part['type'] == 'text' %}{{ part['text'] }}"
        "{% else %}<|vision_start|><|{{ part['type'] }}_pad|><|vision_end|>{% endif %}"
        "{% endfor %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    tokenizer.chat_template = chat
    Qwen2VLProcessor(Qwen2VLImageProcessor(), tokenizer, chat_template=chat).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    names = ("vision_start", "vision_end", "image", "video")
    numbers = tokenizer.convert_tokens_to_ids([f"<|{mark}|>" for mark in marks[2:]])
    config = Qwen2VLConfig(
        vocab_size=len(tokenizer) + 5,
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        rope_theta=100.0,
        rope_scaling={"type": "mrope", "mrope_section": [2, 2, 2]},
        vision_config={"depth": 2, "embed_dim": 32, "hidden_size": 24, "num_heads": 2, "patch_size": 14},
        **{f"{name}_token_id": number for name, number in zip(names, numbers, strict=True)},
    )
    Qwen2VLForConditionalGeneration(config).save_pretrained(folder)


def scored(reward: Any, batch: Any, patches: str, kind: str, frames: Tensor) -> Tensor:
    """Return the model's numbers for a batch, with a gradient to the frames that it was made of.

    The published processor has no gradient. Its patches of the numbers of the pixels say where each entry of
    its patches comes from.

    Args:
        reward: published object with a model and a processor.
        batch: result of its prepare_batch.
        patches: name of the patches in the batch.
        kind: argument of the processor, "images" or "videos".
        frames: chosen frames (B, F, 3, H, W) in [0, 1].
    """
    processor = reward.processor.image_processor
    numbers = torch.arange(frames[0].numel(), dtype=torch.float64).reshape(frames[0].shape)
    inputs = {"images": None, "videos": None, kind: [numbers if kind == "videos" else numbers[0]]}
    steps = {"do_resize": False, "do_rescale": False, "do_normalize": False}
    places = processor(**inputs, **steps, return_tensors="pt")[patches].long()
    color = places // frames[0, 0, 0].numel() % 3
    mean, std = torch.tensor(processor.image_mean), torch.tensor(processor.image_std)
    made = torch.cat([(one.flatten()[places] - mean[color]) / std[color] for one in frames])
    torch.testing.assert_close(made, batch[patches], rtol=0, atol=1e-5)
    logits: Tensor = reward.model(return_dict=True, **{**batch, patches: made})["logits"]
    return logits


def main() -> None:
    """Write the weights, the values and the gradient."""
    import_module("transformers")  # before the empty modules, which it would find
    name, folder = sys.argv[1], Path(sys.argv[2])
    sys.meta_path.insert(0, EmptyModules())
    vars(import_module("trl"))["get_quantization_config"] = lambda settings: None
    cases: dict[str, Callable[[Path, Tensor], Tensor]] = {
        "imagereward": imagereward,
        "hpsv3": hpsv3,
        "videoreward": videoreward,
    }
    torch.manual_seed(0)
    (folder / "weights").mkdir()
    images = torch.load(folder / "images.pt").requires_grad_()
    values = cases[name](folder / "weights", images)
    torch.save((values.detach(), *torch.autograd.grad(values.sum(), images)), folder / "published.pt")


if __name__ == "__main__":
    main()
