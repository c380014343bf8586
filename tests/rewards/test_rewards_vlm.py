"""Questions about images with an overlay: drawings, files of questions, and the answers of Qwen2.5-VL."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from reward_checks import (
    check_each_by_itself,
    check_gradient,
    check_mistakes,
    eight_bits,
    gradient_of,
    some_images,
)
from torch import Tensor

pytest.importorskip("transformers")

import tiny_qwen
from test_rewards_vqascore import expected_values

from noisetilt_kernels.rewards import RewardError, RewardSpec, load_reward, load_rewards
from noisetilt_kernels.rewards.vision_language.vlm import VisionQuestion
from noisetilt_kernels.rewards.vision_language.vlm_question import (
    QUESTIONS,
    Line,
    Overlay,
    Picture,
    Points,
    Question,
    composite,
    question_of,
)
from noisetilt_kernels.rewards.vision_language.vqascore import VqaScore

pytestmark = pytest.mark.usefixtures("offline")

RED = torch.tensor([1.0, 0.0, 0.0])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_qwen.save_vqa(tmp_path_factory.mktemp("qwen"), tiny_qwen.make_vqa_model())


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """Picture of 4 x 2 pixels: half transparent blue at the left, fully transparent at the right."""
    image = Image.new("RGBA", (4, 2), (0, 255, 0, 0))
    image.paste((0, 0, 255, 128), (0, 0, 2, 2))
    image.save(tmp_path / "overlay.png")
    return tmp_path / "overlay.png"


# ---- drawings ----


def drawn(overlay: Overlay, height: int = 120, width: int = 200) -> Tensor:
    """Return how red each pixel of a blue image is with the drawing over it, (height, width)."""
    images = torch.zeros(1, 3, height, width)
    images[:, 2] = 1
    result = composite(images, overlay)[0]
    torch.testing.assert_close(result[0] + result[2], torch.ones(height, width), rtol=0, atol=1e-2)
    assert not result[1].any()
    return result[0]


def test_dots_have_their_places_and_labels() -> None:
    red = drawn(Points({"A": (0.25, 0.5), "B": (0.75, 0.05)}))
    for down, across in ((60, 50), (6, 150)):
        assert red[down, across] == 1 and red[down - 1 : down + 2, across - 1 : across + 2].min() > 0.7
    assert red[:, 60:140].max() == 0, "nothing between the dots"
    assert 0 < red[40:56, 45:56].mean() < 1, "the label is above the dot"
    assert 0 < red[10:24, 145:156].mean() < 1, "the label is below a dot at the top"
    assert red.mean() < 0.02
    assert not torch.equal(red, drawn(Points({"B": (0.25, 0.5), "A": (0.75, 0.05)}))), "the letters differ"


def test_lines_go_from_edge_to_edge() -> None:
    red = drawn(Line(0.25, 0.75))
    places = red.argmax(dim=0)
    expected = 30 + 60 * torch.arange(200) / 200
    assert (places - expected).abs().max() <= 2
    assert (red.amax(dim=0) > 0.3).all()
    assert red.mean() < 0.02


def test_drawings_do_not_depend_on_the_size_of_the_image() -> None:
    for overlay in (Points(), Line(0.3, 0.6)):
        small, large = drawn(overlay, 120, 200), drawn(overlay, 480, 800)
        means, others = (torch.nn.functional.avg_pool2d(red[None], n) for red, n in ((small, 8), (large, 32)))
        assert (means - others).abs().mean() < 0.2 * means.mean()


def test_pictures_are_composited(picture: Path) -> None:
    images = some_images(2, 2, 4)
    result = composite(images, Picture(picture))
    torch.testing.assert_close(result[:, :, :, 2:], images[:, :, :, 2:])
    blue = torch.tensor([0.0, 0.0, 1.0])[:, None, None]
    expected = 128 / 255 * blue + 127 / 255 * images[:, :, :, :2]
    torch.testing.assert_close(result[:, :, :, :2], expected)


def test_white_is_transparent_in_pictures_without_transparency(tmp_path: Path) -> None:
    image = Image.new("RGB", (4, 2), (255, 255, 255))
    image.paste((255, 254, 255), (0, 0, 1, 2))
    image.save(tmp_path / "white.png")
    images = some_images(1, 2, 4)
    result = composite(images, Picture(tmp_path / "white.png"))
    torch.testing.assert_close(result[:, :, :, 1:], images[:, :, :, 1:])
    assert torch.equal(result[0, :, 0, 0], torch.tensor([1.0, 254 / 255, 1.0]))


def test_the_image_is_behind_the_drawing() -> None:
    """The gradient is 1 where nothing is drawn, and 0 where the drawing is opaque."""
    images = some_images(1, 60, 80).requires_grad_()
    (gradient,) = torch.autograd.grad(composite(images, Points()).sum(), images)
    red = drawn(Points(), 60, 80)
    torch.testing.assert_close(gradient, (1 - red).expand(1, 3, -1, -1), rtol=0, atol=1e-2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Points({"A": (0.5, 1.2)}),
            "the point 'A' must have two numbers from 0 to 1, got (0.5, 1.2)",
        ),
        (lambda: Points({"A": (0.5,)}), "the point 'A' must have two numbers"),  # type: ignore[dict-item]
        (lambda: Points({}), "points must be places by their labels"),
        (lambda: Line(0.5, float("nan")), "the line must have two numbers from 0 to 1, got (0.5, nan)"),
        (lambda: Picture(Path("nowhere.png")), "there is no picture nowhere.png; correct the path"),
        (lambda: Question("A statement."), "question must be a text that ends with '?', got 'A statement.'"),
        (lambda: Question("Is it?", "Maybe"), "unknown answer 'Maybe'; valid: 'Yes', 'No'"),
    ],
)
def test_invalid_questions(make: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=f"^vlm: {re.escape(message)}"):
        make()


# ---- questions by name ----


def test_questions_by_argument(tmp_path: Path, picture: Path) -> None:
    assert question_of("depth") is QUESTIONS["depth"] and question_of("horizon") is QUESTIONS["horizon"]
    assert question_of("Is the man smiling?") == Question("Is the man smiling?", "Yes", None)
    contents: list[tuple[dict[str, Any], Question]] = [
        ({"question": "Is it, at last?"}, Question("Is it, at last?")),
        (
            {
                "question": "Is B above A?",
                "answer": "No",
                "overlay": {"points": {"A": [0, 1], "B": [0.5, 0.5]}},
            },
            Question("Is B above A?", "No", Points({"A": [0, 1], "B": [0.5, 0.5]})),  # type: ignore[dict-item]
        ),
        ({"question": "Is it?", "overlay": {"line": [0.2, 0.3]}}, Question("Is it?", overlay=Line(0.2, 0.3))),
        (
            {"question": "Is it?", "overlay": {"picture": "overlay.png"}},
            Question("Is it?", overlay=Picture(picture)),
        ),
    ]
    for content, expected in contents:
        (tmp_path / "question.json").write_text(json.dumps(content))
        assert question_of(str(tmp_path / "question.json")) == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", 'must hold an object with a "question", got []'),
        ('{"answer": "Yes"}', 'must hold an object with a "question"'),
        ('{"question": "Is it?", "overlays": {}}', "unknown field in "),
        ('{"question": 5}', "question must be a text that ends with '?', got 5"),
        ('{"question": "Is it?", "overlay": "depth"}', "overlay must be {"),
        ('{"question": "Is it?", "overlay": {"circle": 1}}', "unknown overlay 'circle'; valid: 'points'"),
        ('{"question": "Is it?", "overlay": {"line": [0, 0.5, 1]}}', "the line must have two numbers"),
        ('{"question": "Is it?", "overlay": {"points": [0, 1]}}', "points must be places by their labels"),
        ('{"question": "Is it?", "overlay": {"picture": "no.png"}}', "there is no picture "),
    ],
)
def test_invalid_files(content: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "question.json"
    file.write_text(content)
    with pytest.raises(ValueError, match=f"^vlm: .*{re.escape(message)}") as caught:
        RewardSpec.parse(f"vlm:{file}")
    assert str(file) in str(caught.value)


def test_arguments_are_checked_before_loading() -> None:
    for load in (load_reward, load_rewards):
        with pytest.raises(ValueError, match=r"^rewards: reward 'vlm' needs an argument after a colon: "):
            load("vlm")
        with pytest.raises(ValueError, match=r"^vlm: nowhere.json cannot be read as JSON"):
            load("vlm:nowhere.json")
    with pytest.raises(ValueError, match=r"^vlm: the argument must be depth or .*, got 'Is the man'"):
        load_rewards("vlm:Is the man, who smiles, old?")


# ---- answers ----


def test_it_is_the_answer_of_transformers_about_the_drawn_image(folder: Path) -> None:
    """The drawn image is one of 8 bits, which the processor and the model of transformers read."""
    images, _ = eight_bits(some_images(3, 40, 56, seed=2))
    _, pil = eight_bits(composite(images, Line(0.4, 0.6)))
    values = VisionQuestion(folder, question=Question("Is {} here?", overlay=Line(0.4, 0.6)))(
        images, ["a", "b", "a"]
    )
    asked = [f"Is {prompt} here? Answer with Yes or No." for prompt in "aba"]
    expected = expected_values(folder, pil, asked, "{}")
    assert expected.max() - expected.min() > 0.05 * expected.max(), "a tolerance that excludes nothing"
    torch.testing.assert_close(values, expected, rtol=5e-3, atol=0)
    assert not torch.allclose(values, VqaScore(folder, question="{}")(images, asked), rtol=2e-2)


def test_without_overlay_it_is_vqascore(folder: Path) -> None:
    images = some_images(2, 40, 56)
    values = load_reward("vlm:Does this image show it?", source=str(folder))(images, ["a", "b"])
    same = VqaScore(folder, question="Does this image show it? Answer with Yes or No.{}")(images, ["", ""])
    torch.testing.assert_close(values, same)


def test_the_wanted_answer_can_be_no(folder: Path) -> None:
    tokenizer = tiny_qwen.make_tokenizer()
    assert len(tokenizer("No").input_ids) == 2, "this tokenizer has no token for it"
    with pytest.raises(RewardError, match=r"^vlm: 'No' must be one token"):
        VisionQuestion(folder, question=Question("Is it?", "No"))


def test_gradient(folder: Path) -> None:
    reward = VisionQuestion(folder, question="depth")
    images = some_images(2, 61, 41)
    check_gradient(lambda i, p: 1000 * reward(i, p), images, ["", ""], size=5e-4)
    gradient = gradient_of(reward, images, ["", ""])
    hidden = drawn(Points(), 61, 41) > 0.999
    assert hidden.any() and not gradient[:, :, hidden].any()


def test_no_image_influences_another(folder: Path) -> None:
    reward = VisionQuestion(folder, question="Is {} nearer than B?")
    check_each_by_itself(reward, some_images(3, 40, 40), ["a", "the big b", "c"], tolerance=1e-7)


def test_mistakes(folder: Path) -> None:
    check_mistakes(VisionQuestion(folder), "vlm")
    with pytest.raises(RewardError, match=r"^vlm: there is no folder \S+missing; name the folder"):
        load_reward("vlm:horizon", source=str(folder / "missing"))
