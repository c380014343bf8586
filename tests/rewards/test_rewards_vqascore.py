"""VQAScore by Qwen2.5-VL, compared with Hugging Face's processor and model on PIL images."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from reward_checks import (
    check_each_by_itself,
    check_gradient,
    check_incomplete,
    check_mistakes,
    check_pickle,
    eight_bits,
    gradient_of,
    some_images,
)
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Qwen2VLImageProcessorPil

pytest.importorskip("transformers")

import tiny_qwen
from PIL import Image
from transformers import Qwen2_5_VLForConditionalGeneration

from noisetilt_kernels.rewards import RewardError, load_reward
from noisetilt_kernels.rewards.vision_language.qwen import Patches, image_patches
from noisetilt_kernels.rewards.vision_language.vqascore import (
    QUESTION,
    QUESTION_OF_OTHERS,
    VqaScore,
    positions,
)

PROMPTS = ["a cat", "two red boats on a lake", "a cat"]


pytestmark = pytest.mark.usefixtures("offline")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_qwen.save_vqa(tmp_path_factory.mktemp("qwen"), tiny_qwen.make_vqa_model())


@pytest.fixture(scope="module")
def reward(folder: Path) -> VqaScore:
    return VqaScore(folder)


# ---- preprocessing ----


def check_patches(patches: Patches, processor: Qwen2VLImageProcessorPil, image: Tensor) -> None:
    """Compare up to the rounding of two passes to 8 bits: at most 1.25 of 255 in a pixel.

    The order of Pillow's passes depends on its version and matters where noise is clipped. Here the width is
    first.
    """
    images, (pil,) = eight_bits(image[None])
    # an image of 3 rows could be taken for one of 3 channels
    _, height, width = (
        processor(pil, return_tensors="pt", input_data_format="channels_last").image_grid_thw[0].tolist()
    )
    across = pil.resize((width * patches.side, pil.height), Image.Resampling.BICUBIC)
    expected = processor(
        across.resize((across.width, height * patches.side), Image.Resampling.BICUBIC), return_tensors="pt"
    )
    actual, grid = patches(images)
    assert torch.equal(grid, torch.tensor([[1, height, width]]))
    assert torch.equal(grid, expected.image_grid_thw)
    assert actual.shape == expected.pixel_values.shape
    deviation = torch.tensor(processor.image_std).repeat_interleave(
        processor.temporal_patch_size * patches.side**2
    )
    assert ((actual - expected.pixel_values) * deviation * 255).abs().max() < 1.25


@pytest.mark.parametrize(
    ("height", "width"), [(224, 224), (56, 84), (60, 81), (97, 331), (512, 352), (30, 20), (14, 700), (3, 5)]
)
def test_patches_are_those_of_the_processor(height: int, width: int) -> None:
    processor = Qwen2VLImageProcessorPil()
    patches = image_patches("vqascore", tiny_qwen.make_vqa_model().config.vision_config, processor.to_dict())
    patches = Patches("vqascore", 14, 2, 2, patches.least, patches.most)
    noise = torch.rand(3, height, width, generator=torch.Generator().manual_seed(0))
    for image in (some_images(1, height, width)[0], noise, noise.round()):
        check_patches(patches, processor, image)


@pytest.mark.parametrize(
    "options",
    [
        {"min_pixels": 40_000, "max_pixels": 50_000},
        {"size": {"shortest_edge": 4_000, "longest_edge": 8_000}},
        {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.6, 0.7]},
    ],
)
def test_patches_follow_the_configuration(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    # transformers 5.6 writes min_pixels and max_pixels into the sizes of the class
    monkeypatch.setattr(Qwen2VLImageProcessorPil, "size", dict(Qwen2VLImageProcessorPil.size))
    processor = Qwen2VLImageProcessorPil(patch_size=4, **options)
    patches = image_patches("vqascore", tiny_qwen.make_vqa_model().config.vision_config, processor.to_dict())
    check_patches(patches, processor, some_images(1, 150, 100)[0])


def test_pixel_limits_of_old_configurations() -> None:
    config = tiny_qwen.make_vqa_model().config.vision_config
    patches = image_patches("vqascore", config, {"min_pixels": 100, "max_pixels": 200})
    assert (patches.least, patches.most) == (100, 200)
    assert (patches.side, patches.merged, patches.frames) == (4, 2, 2)


def test_sizes() -> None:
    """Sizes are multiples of a token, close to the image's size, and within the limits."""
    patches = Patches("vqascore", side=14, merged=2, frames=2, least=3136, most=100_000)
    for height, width in [(28, 28), (1, 1), (1, 200), (300, 300), (40, 4000), (4000, 4000), (1000, 999)]:
        size = patches.size(height, width)
        assert all(side % 28 == 0 and side > 0 for side in size)
        assert 3136 <= size[0] * size[1] <= 100_000
    assert patches.size(281, 279) == (280, 280)
    with pytest.raises(
        ValueError, match=r"^vqascore: one side must be at most 200 times the other, got 1 x 201 pixels"
    ):
        patches.size(1, 201)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_plain_black_and_white_have_a_gradient(value: float) -> None:
    patches = Patches("vqascore", side=4, merged=2, frames=2, least=256, most=1024)
    images = torch.full((1, 3, 50, 70), value)
    gradient = gradient_of(lambda images, prompts: patches(images)[0].sum()[None], images, [""])
    assert gradient[..., 5:45, 5:65].min() > 0


# ---- text ----


def test_positions_are_those_of_the_model(reward: VqaScore) -> None:
    model, pad = reward._model.model, reward._model.config.image_token_id
    start = reward._model.config.vision_start_token_id
    for t, down, across in [(1, 3, 4), (1, 5, 2), (1, 1, 1)]:
        tokens = torch.tensor([[5, 6, start, *[pad] * (down * across), 8, 9]])
        expected, _ = model.get_rope_index(
            tokens,
            image_grid_thw=torch.tensor([[t, 2 * down, 2 * across]]),
            mm_token_type_ids=(tokens == pad).int(),
        )
        assert torch.equal(positions(tokens.shape[1], 3, down, across), expected)


def test_the_question(reward: VqaScore) -> None:
    numbers = reward._chat.tokens(QUESTION_OF_OTHERS.format("a cat"), 3)
    assert numbers.dtype == torch.int64
    assert tiny_qwen.make_tokenizer().decode(numbers) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        '<|vision_start|><|image_pad|><|image_pad|><|image_pad|><|vision_end|>Does this figure show "a cat"? '
        "Please answer yes or no.<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_tokenizer_without_a_chat_template(reward: VqaScore, folder: Path, tmp_path: Path) -> None:
    copy_of(folder, tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    other = VqaScore(tmp_path)
    assert other._chat._tokenizer.chat_template is None
    assert torch.equal(other._chat.tokens("what", 2), reward._chat.tokens("what", 2))


def test_the_template_of_the_tokenizer_is_used(folder: Path, tmp_path: Path) -> None:
    copy_of(folder, tmp_path)
    file = tmp_path / "chat_template.jinja"
    file.write_text(file.read_text().replace("helpful", "strict"))
    text = VqaScore(tmp_path)._chat.tokens("what", 2)
    assert "You are a strict assistant" in tiny_qwen.make_tokenizer().decode(text)


def test_prompts_with_the_token_of_images(reward: VqaScore) -> None:
    with pytest.raises(
        ValueError, match=r"^vqascore: prompts must not contain <\|image_pad\|>, got .*a <\|image_pad"
    ):
        reward(some_images(1), ["a <|image_pad|> cat"])
    reward(some_images(1), ["{braces} <|im_end|> and {0}"])  # other special tokens are allowed


# ---- values ----


def expected_values(
    folder: Path, pil: list[Image.Image], prompts: list[str], question: str = QUESTION
) -> Tensor:
    """Return P("Yes") among all tokens by the processor and model of transformers, image by image."""
    processor, tokenizer = tiny_qwen.make_image_processor(), tiny_qwen.make_tokenizer()
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder)
    values = []
    for image, prompt in zip(pil, prompts, strict=True):
        pixels = processor(image, return_tensors="pt")
        chat = tokenizer.apply_chat_template(
            [
                {
                    "role": "user",
                    "content": [
                        {"type": "image"},
                        {
                            "type": "text",
                            "text": question.format(prompt),
                        },
                    ],
                }
            ],
            tokenize=False,
            add_generation_prompt=True,
        )
        count = int(pixels.image_grid_thw.prod()) // 4
        tokens = tokenizer(
            chat.replace("<|image_pad|>", "<|image_pad|>" * count), return_tensors="pt"
        ).input_ids
        with torch.no_grad():
            logits = model(
                input_ids=tokens,
                mm_token_type_ids=(tokens == model.config.image_token_id).int(),
                **pixels,
            ).logits[0, -1]
        values.append(logits.softmax(0)[tokenizer.convert_tokens_to_ids("Yes")])
    return torch.stack(values)


@pytest.mark.parametrize(("height", "width"), [(40, 56), (75, 50)])
def test_it_is_the_probability_of_yes_by_transformers(
    reward: VqaScore, folder: Path, height: int, width: int
) -> None:
    images, pil = eight_bits(some_images(3, height, width, seed=2))
    values, expected = reward(images, PROMPTS), expected_values(folder, pil, PROMPTS)
    rtol = 1e-4 if height == 40 else 0.05  # exact if the image is not resized
    assert expected.max() - expected.min() > 5 * rtol * expected.max(), "a tolerance that excludes nothing"
    torch.testing.assert_close(values, expected, rtol=rtol, atol=0)
    assert values.dtype == torch.float32


def test_gradients(reward: VqaScore) -> None:
    for size in [(40, 56), (61, 41)]:
        check_gradient(lambda i, p: 1000 * reward(i, p), some_images(2, *size), PROMPTS[:2], size=5e-4)


def test_no_image_influences_another(reward: VqaScore) -> None:
    images = some_images(3, 40, 40)
    check_each_by_itself(reward, images, PROMPTS, tolerance=1e-7)
    prompts = ["a cat", "two red boats on a lake " * 3, "b"]
    alone = [reward(images[index : index + 1], [prompt])[0] for index, prompt in enumerate(prompts)]
    assert torch.equal(reward(images, prompts), torch.stack(alone)), "to the bit"


def test_weights_are_frozen(reward: VqaScore) -> None:
    assert not any(parameter.requires_grad for parameter in reward._model.parameters())
    assert not any(module.training for module in reward._model.modules())


def kept(reward: VqaScore, images: Tensor) -> int:
    """Return the number of bytes that the graph of one reward keeps, without the weights."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in reward._model.parameters()}
    seen: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        value = reward(images.clone().requires_grad_(), ["a cat"])
    assert value.requires_grad
    return sum(seen.values())


def test_blocks_are_computed_again_in_the_backward(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = some_images(1, 64, 40)
    with_it = kept(VqaScore(folder), images)
    monkeypatch.setattr(
        "noisetilt_kernels.rewards.vision_language.vqascore.recompute_blocks", lambda model: None
    )
    without = VqaScore(folder)
    assert with_it < 0.35 * kept(without, images)
    gradient = gradient_of(VqaScore(folder), images, ["a cat"])
    torch.testing.assert_close(gradient, gradient_of(without, images, ["a cat"]))


def test_bfloat16_is_for_the_model_alone(reward: VqaScore, folder: Path) -> None:
    images = some_images(3, 40, 40)
    rounded = VqaScore(folder, dtype=torch.bfloat16)
    model = rounded._model
    assert all(parameter.dtype == torch.bfloat16 for parameter in model.parameters())
    # positions stay integers: bfloat16 cannot tell apart those above 256
    assert all(buffer.dtype == torch.float32 for buffer in model.buffers())
    values = rounded(images, PROMPTS)
    assert values.dtype == torch.float32
    assert not torch.equal(values, reward(images, PROMPTS))
    torch.testing.assert_close(values, reward(images, PROMPTS), rtol=0.2, atol=0)
    gradient, expected = gradient_of(rounded, images, PROMPTS), gradient_of(reward, images, PROMPTS)
    assert gradient.dtype == torch.float32
    assert torch.cosine_similarity(gradient.flatten(), expected.flatten(), dim=0) > 0.9


def test_by_name(reward: VqaScore, folder: Path) -> None:
    images = some_images(1, 40, 40)
    named = load_reward("vqascore", source=str(folder))
    assert torch.equal(named(images, ["a cat"]), reward(images, ["a cat"]))


# ---- files that are missing or do not match ----


def copy_of(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to, dirs_exist_ok=True)
    return to


def change_json(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def check(source: Any, message: str) -> None:
    with pytest.raises(RewardError, match=f"^vqascore: {message}") as caught:
        VqaScore(source)
    assert "\n" not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_no_folder(tmp_path: Path) -> None:
    check(tmp_path / "missing", r"there is no folder \S+missing; name the folder of the weights, or an id")


def test_no_hub() -> None:
    check(
        "nobody/nothing",
        r"'nobody/nothing' is not a folder, and the hub cannot be reached; .*hf download nobody/nothing --",
    )


def test_another_model(folder: Path, tmp_path: Path) -> None:
    change_json(copy_of(folder, tmp_path) / "config.json", model_type="qwen2_vl")
    check(tmp_path, r"\S+ must hold a config.json with model_type 'qwen2_5_vl', got 'qwen2_vl'$")


def test_no_weights(folder: Path, tmp_path: Path) -> None:
    (copy_of(folder, tmp_path) / "model.safetensors").unlink()
    check(tmp_path, r"\S+ cannot be loaded: .*model.safetensors.*; if it is incomplete, download or save")


def test_each_tensor(folder: Path, tmp_path: Path) -> None:
    file = copy_of(folder, tmp_path) / "model.safetensors"
    check_incomplete(
        "vqascore", tmp_path, load_file(file), lambda tensors: save_file(tensors, file, {"format": "pt"})
    )
    file.unlink()
    check_pickle("vqascore", tmp_path, tmp_path / "pytorch_model.bin")


def test_incomplete_weights(folder: Path, tmp_path: Path) -> None:
    file = copy_of(folder, tmp_path) / "model.safetensors"
    tensors = load_file(file)
    del tensors["lm_head.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    check(
        tmp_path, r"the weights in \S+ lack lm_head.weight; name a source that has a whole Qwen2.5-VL model$"
    )


def test_no_tokenizer(folder: Path, tmp_path: Path) -> None:
    copy_of(folder, tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    check(
        tmp_path,
        r"there is no tokenizer with <\|image_pad\|> as number \d+, which the model expects, in \S+; put its",
    )


def test_a_tokenizer_of_another_model(folder: Path, tmp_path: Path) -> None:
    change_json(copy_of(folder, tmp_path) / "config.json", image_token_id=3)
    check(tmp_path, r"there is no tokenizer with <\|image_pad\|> as number 3")


def test_a_template_without_a_place_for_images(folder: Path, tmp_path: Path) -> None:
    (copy_of(folder, tmp_path) / "chat_template.jinja").write_text("{{ messages[0]['content'][1]['text'] }}")
    check(
        tmp_path,
        r"the chat template of the tokenizer in \S+ must have one place for images; use the tokenizer of",
    )


def test_an_answer_of_several_tokens(reward: VqaScore) -> None:
    with pytest.raises(
        RewardError, match=r"^vqascore: 'Maybe' must be one token, but the tokenizer splits it into 5; use"
    ):
        reward._chat.one_token("Maybe")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"do_normalize": False},
            "the image processor's do_normalize must be True, got False; name a source",
        ),
        ({"resample": 2}, "the image processor's resample must be 3, got 2; name a source"),
        (
            {"size": {"shortest_edge": 5000, "longest_edge": 4000}},
            "the image processor's min_pixels must be at most its max_pixels, got 5000 and 4000; name a ",
        ),
    ],
)
def test_an_unsupported_image_processor(
    folder: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    change_json(copy_of(folder, tmp_path) / "preprocessor_config.json", **options)
    check(tmp_path, re.escape(message))


def test_default_image_processor(folder: Path, tmp_path: Path) -> None:
    (copy_of(folder, tmp_path) / "preprocessor_config.json").unlink()
    patches = VqaScore(tmp_path)._patches
    assert (patches.least, patches.most, patches.side) == (3136, 12_845_056, 4)


def test_the_question_is_the_authors_for_this_model(folder: Path) -> None:
    assert QUESTION == 'Does this image show "{}"?'
    images = some_images(2)
    values = [VqaScore(folder, question=one)(images, PROMPTS[:2]) for one in (QUESTION, QUESTION_OF_OTHERS)]
    torch.testing.assert_close(VqaScore(folder)(images, PROMPTS[:2]), values[0], rtol=0, atol=0)
    assert not torch.equal(*values)
    for question in ("Is it?", "{} {}?"):
        with pytest.raises(ValueError, match=r"^VqaScore: question must contain \{\} once, for the prompt"):
            VqaScore(folder, question=question)


def test_braces_in_a_prompt(reward: VqaScore) -> None:
    assert reward(some_images(1), ["{} a {cat}"]).shape == (1,)


def test_arguments(reward: VqaScore) -> None:
    with pytest.raises(ValueError, match=r"^vqascore: images must be \(B, 3, H, W\), got \(3, 8, 8\)"):
        reward(some_images(1, 8, 8)[0], ["a"])
    check_mistakes(reward, "vqascore")
