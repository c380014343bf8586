"""Rewards for handwritten digits, with random weights."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reward_checks import check_each_by_itself, check_gradient, some_images
from safetensors.torch import save_file
from torch import Tensor

from noisetilt_kernels.rewards import DigitClassifier, DigitJudge, RewardError, digit_of, digits
from noisetilt_kernels.rewards.digits import (
    CLASSIFIER_FILE,
    JUDGE_FILE,
    WORDS,
    DigitJudgeReward,
    DigitReward,
    scan,
)

PROMPTS = ["a handwritten seven", "digit 0", "the number Nine"]


def judge_tensors() -> dict[str, Tensor]:
    """Return ten support vectors, one for each digit, with noise."""
    generator = torch.Generator().manual_seed(3)
    return {
        "support_vectors": torch.rand(10, 64, generator=generator),
        "coefficients": torch.eye(10) + 0.1 * torch.randn(10, 10, generator=generator),
        "intercept": 0.01 * torch.randn(10, generator=generator),
        "gamma": torch.tensor(0.15),
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with both files."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("digit-rewards")
    classifier = DigitClassifier()
    with torch.no_grad():  # different images have different values
        classifier.layers[-1].weight.mul_(3)
    save_file(classifier.state_dict(), path / CLASSIFIER_FILE)
    save_file(judge_tensors(), path / JUDGE_FILE)
    return path


# ---- prompts ----


@pytest.mark.parametrize(("digit", "word"), list(enumerate(WORDS)))
def test_every_digit_is_found(digit: int, word: str) -> None:
    for prompt in (
        word,
        str(digit),
        f"a handwritten {word}.",
        f"Digit: {digit}!",
        f"the number {word.upper()}, large",
        f"{word} ({digit})",
    ):
        assert digit_of(prompt) == digit, prompt


@pytest.mark.parametrize(
    ("prompt", "named"),
    [
        ("", "none"),
        ("a cat", "none"),
        ("seventy", "none"),
        ("a 17", "none"),
        ("twenty-seven", "none"),
        ("7.5", "none"),
        ("1,000", "none"),
        ("h7o", "none"),
        ("someone", "none"),
        ("a 3 and a 7", "3, 7"),
        ("one seven", "1, 7"),
    ],
)
def test_prompts_without_one_digit(prompt: str, named: str) -> None:
    with pytest.raises(
        ValueError, match=rf"^digit_of: prompt must .*; it names {named}: {re.escape(repr(prompt))}$"
    ):
        digit_of(prompt)


# ---- the classifier ----


def test_the_classifier_is_small_and_gives_log_probabilities() -> None:
    classifier = DigitClassifier()
    assert 30_000 <= sum(parameter.numel() for parameter in classifier.parameters()) <= 60_000
    values = classifier(some_images(3))
    assert values.shape == (3, 10)
    torch.testing.assert_close(values.exp().sum(dim=1), torch.ones(3))


def test_the_classifier_sees_grey_images_of_one_size(folder: Path) -> None:
    classifier = DigitReward(folder).classifier
    images = some_images(2)
    grey = images.mean(dim=1, keepdim=True)
    torch.testing.assert_close(classifier(images), classifier(grey.expand(-1, 3, -1, -1)), rtol=0, atol=1e-5)
    # a pattern too fine for 32 x 32 is averaged, not sampled
    large = some_images(2, 96, 64)
    fine = large.clone()
    fine[:, :, ::3] -= 0.15
    fine[:, :, 1::3] += 0.15
    torch.testing.assert_close(classifier(fine), classifier(large), rtol=0, atol=0.2)
    assert (classifier(images) - classifier(images.flip(2))).abs().max() > 0.3, (
        "a tolerance that excludes nothing"
    )


def test_digit_is_the_log_probability_of_the_prompts_digit(folder: Path) -> None:
    reward = DigitReward(folder)
    images = some_images(3)
    every = reward.classifier(images)
    torch.testing.assert_close(reward(images, PROMPTS), torch.stack([every[0, 7], every[1, 0], every[2, 9]]))
    assert not any(parameter.requires_grad for parameter in reward.classifier.parameters())
    assert not reward.classifier.training


@pytest.mark.parametrize("size", [(32, 32), (48, 20)])
def test_digit_has_a_gradient_of_each_image_by_itself(folder: Path, size: tuple[int, int]) -> None:
    reward = DigitReward(folder)
    check_gradient(reward, some_images(3, *size), PROMPTS, size=1e-3)
    check_each_by_itself(reward, some_images(3, *size), PROMPTS, tolerance=1e-4)


# ---- the judge ----


def test_a_scan_is_the_means_of_tiles() -> None:
    images = torch.rand(2, 3, 32, 16)
    expected = images.mean(dim=1).unflatten(1, (8, 4)).unflatten(3, (8, 2)).mean(dim=(2, 4)).flatten(1)
    torch.testing.assert_close(scan(images), expected)
    small = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(scan(small), small.mean(dim=1).flatten(1))
    assert scan(torch.rand(1, 3, 5, 37)).shape == (1, 64)


def test_the_judges_scores_are_those_of_the_definition() -> None:
    tensors = judge_tensors()
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    vectors, coefficients, intercept, gamma = (tensors[name].double().numpy() for name in tensors)
    scans = scan(images).double().numpy()
    expected = np.zeros((4, 10))
    for image in range(4):
        for digit in range(10):
            kernel = [np.exp(-gamma * np.sum((scans[image] - vector) ** 2)) for vector in vectors]
            expected[image, digit] = np.dot(kernel, coefficients[:, digit]) + intercept[digit]
    judge = DigitJudge(**tensors)
    np.testing.assert_allclose(judge.scores(images), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(judge(images), expected.argmax(axis=1))


def test_the_judge_is_scikit_learns() -> None:
    multiclass, svm = pytest.importorskip("sklearn.multiclass"), pytest.importorskip("sklearn.svm")
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 10
    points = rng.normal(size=(10, 64))[labels] * 0.2 + 0.5 + 0.1 * rng.normal(size=(60, 64))
    machines = multiclass.OneVsRestClassifier(svm.SVC(kernel="rbf", gamma=0.15)).fit(points, labels)
    coefficients = np.zeros((60, 10))
    for digit, machine in enumerate(machines.estimators_):
        coefficients[machine.support_, digit] = machine.dual_coef_[0]
    intercept = np.array([machine.intercept_[0] for machine in machines.estimators_])
    judge = DigitJudge(*(torch.tensor(value) for value in (points, coefficients, intercept, np.array(0.15))))
    unseen = rng.normal(size=(20, 64)) * 0.2 + 0.5
    images = torch.tensor(unseen).reshape(20, 1, 8, 8).expand(-1, 3, -1, -1)
    np.testing.assert_allclose(judge.scores(images), machines.decision_function(unseen), atol=1e-12)
    np.testing.assert_array_equal(judge(images), machines.predict(unseen))


def test_digit_judge_is_one_where_the_judge_agrees(folder: Path) -> None:
    reward = DigitJudgeReward(folder)
    vectors = judge_tensors()["support_vectors"].reshape(10, 1, 8, 8)
    images = vectors.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3).expand(-1, 3, -1, -1)
    assert reward(images, list(WORDS)).tolist() == [1.0] * 10
    assert (
        reward(images, [WORDS[(digit + (digit > 3)) % 10] for digit in range(10)]).tolist()
        == [1.0] * 4 + [0.0] * 6
    )
    values = reward(images.requires_grad_(), list(WORDS))
    assert values.dtype == torch.float32
    assert not values.requires_grad


# ---- errors ----


@pytest.mark.parametrize(("reward", "file"), [(DigitReward, CLASSIFIER_FILE), (DigitJudgeReward, JUDGE_FILE)])
def test_missing_and_broken_files(reward: Any, file: str, tmp_path: Path) -> None:
    message = (
        rf"^there is no {re.escape(str(tmp_path / file))}; `python -m noisetilt_kernels.training` writes it"
    )
    with pytest.raises(RewardError, match=message):
        reward(tmp_path)
    (tmp_path / file).write_bytes(b"not a safetensors file")
    with pytest.raises(RewardError, match=rf"{file} is not a complete safetensors file"):
        reward(tmp_path)
    save_file({"gamma": torch.ones(1), "layers.0.weight": torch.ones(2)}, tmp_path / file)
    with pytest.raises(RewardError, match=rf"{file} must hold \S+ of shape \(.*\)"):
        reward(tmp_path)


def test_one_wrong_shape_is_named(tmp_path: Path) -> None:
    save_file({**judge_tensors(), "coefficients": torch.ones(10, 9)}, tmp_path / JUDGE_FILE)
    with pytest.raises(
        RewardError, match=r"must hold coefficients of shape \(-1, 10\) \(-1 is any size\), got \(10, 9\)"
    ):
        DigitJudgeReward(tmp_path)


@pytest.mark.parametrize(("name", "reward"), [("digit", DigitReward), ("digit-judge", DigitJudgeReward)])
def test_mistakes(folder: Path, name: str, reward: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{name}: images must be \(B, 3, H, W\)"):
        reward(folder)(torch.rand(1, 1, 32, 32), ["7"])
    with pytest.raises(ValueError, match=rf"^{name}: needs one prompt for each of the 1 images, got 2"):
        reward(folder)(some_images(1), ["7", "8"])
    with pytest.raises(ValueError, match=r"^digit_of: .*'a cat'"):
        reward(folder)(some_images(1), ["a cat"])


def test_the_folder_is_within_the_package() -> None:
    assert Path(digits.__file__).parents[1] / "assets" / "digit-rewards" == digits.DIGIT_REWARDS
