"""Rewards for handwritten digits: a differentiable network, and an independent judge without gradient.

`python -m noisetilt_kernels.training` trains both. The judge is a support vector machine trained on other
digits than the network, so it does not reward images that only exploit the network.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional

from ..model_sources import ASSETS
from .checks import RewardError, check_batch
from .weightless import placed, read_safetensors

DIGIT_REWARDS = ASSETS / "digit-rewards"
"""Folder of the bundled weights of both rewards."""
CLASSIFIER_FILE, JUDGE_FILE = "classifier.safetensors", "judge.safetensors"

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SIDE = 32
"""Height and width in pixels of the classifier's input."""
SCAN_SIDE = 8
"""Height and width in pixels of the judge's input."""

# Not within another word or number ("seventy", "17", "7.5"), and not joined to one by a hyphen
# ("twenty-seven").
_NAMED = re.compile(rf"(?<![\w-])(?<!\d[.,])({'|'.join(WORDS)}|[0-9])(?![\w-])(?![.,]\d)", re.IGNORECASE)

AnyModule = TypeVar("AnyModule", bound=nn.Module)


def digit_of(prompt: str) -> int:
    """Return the digit that a prompt names once or more, as a word ("seven") or a numeral ("7").

    Raises:
        ValueError: the prompt names no digit, or several.
    """
    named = {found.lower() for found in _NAMED.findall(prompt)}
    digits = {WORDS.index(name) if name in WORDS else int(name) for name in named}
    if len(digits) != 1:
        which = f"it names {', '.join(map(str, sorted(digits)))}" if digits else "it names none"
        raise ValueError(
            f"digit_of: prompt must name exactly one digit, such as 'a handwritten seven'; {which}: "
            f"{prompt!r}"
        )
    return digits.pop()


def scan(images: Tensor) -> Tensor:
    """Return the grey means (B, 64) of 8 x 8 tiles of images (B, 3, H, W), as in scikit-learn's digits."""
    return functional.adaptive_avg_pool2d(images.mean(dim=1), SCAN_SIDE).flatten(1)


class DigitClassifier(nn.Module):
    """Classifier of images (B, 3, H, W) in [0, 1]; returns the log-probabilities (B, 10) of the digits.

    A small convolutional network on the grey image, resized to 32 x 32. It is smooth, so its gradient can
    guide sampling. It normalizes each image separately, so no image changes the result of another.
    """

    def __init__(self) -> None:
        super().__init__()
        widths = (16, 32, 48, 48)
        layers: list[nn.Module] = []
        before = 1
        for width in widths:
            stride = 1 if before == 1 else 2
            layers += [nn.Conv2d(before, width, 3, stride, padding=1), nn.GroupNorm(8, width), nn.GELU()]
            before = width
        side = SIDE // 2 ** (len(widths) - 1)
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(before * side**2, 10))

    def forward(self, images: Tensor) -> Tensor:
        grey = images.mean(dim=1, keepdim=True)
        resized = functional.interpolate(grey, size=(SIDE, SIDE), mode="bilinear", antialias=True)
        # from [0, 1], paper to ink, to [-1, 1]
        logits: Tensor = self.layers(2 * resized - 1)
        return logits.log_softmax(dim=1)


class DigitJudge(nn.Module):
    """Classifier of images (B, 3, H, W) in [0, 1] without gradient; returns the digits, int64 (B,).

    There is one support vector machine with a Gaussian kernel for each digit against all others. The digit
    with the highest score is returned.

    Args:
        support_vectors: (n, 64), in the format of `scan`.
        coefficients: (n, 10), weight of each support vector in the score of each digit.
        intercept: (10,), constant part of the scores.
        gamma: (), width parameter of the kernel exp(-gamma |x - y|^2).
    """

    support_vectors: Tensor
    coefficients: Tensor
    intercept: Tensor
    gamma: Tensor

    def __init__(
        self, support_vectors: Tensor, coefficients: Tensor, intercept: Tensor, gamma: Tensor
    ) -> None:
        super().__init__()
        self.register_buffer("support_vectors", support_vectors)
        self.register_buffer("coefficients", coefficients)
        self.register_buffer("intercept", intercept)
        self.register_buffer("gamma", gamma)

    @torch.no_grad()
    def scores(self, images: Tensor) -> Tensor:
        """Return the score (B, 10) of each digit for images (B, 3, H, W); higher is more certain."""
        # the matrix product would lose small distances to rounding
        distances = torch.cdist(
            scan(images.to(self.gamma.dtype)),
            self.support_vectors,
            compute_mode="donot_use_mm_for_euclid_dist",
        )
        return torch.exp(-self.gamma * distances**2) @ self.coefficients + self.intercept

    def forward(self, images: Tensor) -> Tensor:
        return self.scores(images).argmax(dim=1)


class DigitReward:
    """Log-probability of the digit that the prompt names, at most 0, by `DigitClassifier`; differentiable.

    Images (B, 3, H, W) in [0, 1] of any size and B prompts -> float32 (B,).

    Args:
        source: folder with `classifier.safetensors`.
        device: device of the images.

    Raises:
        RewardError: the file does not exist, or holds something else.
    """

    def __init__(self, source: str | Path = DIGIT_REWARDS, device: str | torch.device = "cpu") -> None:
        classifier = DigitClassifier()
        tensors = _load(
            Path(source) / CLASSIFIER_FILE,
            {name: tuple(t.shape) for name, t in classifier.state_dict().items()},
        )
        classifier.load_state_dict(tensors)
        self.classifier = _frozen(classifier, device)

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        check_batch("digit", images, prompts)
        digits = torch.tensor([digit_of(prompt) for prompt in prompts], device=images.device)
        log_probabilities: Tensor = self.classifier(images.float())
        return log_probabilities.gather(1, digits[:, None])[:, 0]


class DigitJudgeReward:
    """1 if `DigitJudge` sees the digit that the prompt names, else 0. Without gradient.

    The mean over images is an accuracy. Images (B, 3, H, W) in [0, 1] of any size and B prompts -> float32
    (B,).

    Args:
        source: folder with `judge.safetensors`.
        device: device of the images.

    Raises:
        RewardError: the file does not exist, or holds something else.
    """

    def __init__(self, source: str | Path = DIGIT_REWARDS, device: str | torch.device = "cpu") -> None:
        vectors = SCAN_SIDE**2
        shapes = {"support_vectors": (-1, vectors), "coefficients": (-1, 10), "intercept": (10,), "gamma": ()}
        self.judge = _frozen(DigitJudge(**_load(Path(source) / JUDGE_FILE, shapes)), device)

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        check_batch("digit-judge", images, prompts)
        digits = torch.tensor([digit_of(prompt) for prompt in prompts], device=images.device)
        return (self.judge(images.float()) == digits).float()


def _load(file: Path, shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Return the float32 tensors of a file, which must have these names and shapes; -1 is any size."""
    if not file.is_file():
        raise RewardError(
            f"there is no {file}; `python -m noisetilt_kernels.training` writes it, or name a folder that "
            "has it as the reward's source"
        )
    try:
        tensors = read_safetensors(file)
    except SafetensorError as error:
        raise RewardError(
            f"{file} is not a complete safetensors file ({error}); train or download it again"
        ) from None
    for name, wanted in shapes.items():
        found = tuple(tensors[name].shape) if name in tensors else None
        if found is None or not _fits(found, wanted):
            raise RewardError(
                f"{file} must hold {name} of shape {wanted} (-1 is any size), got {found}; "
                "`python -m noisetilt_kernels.training` writes such a file"
            )
    return {name: tensors[name].float() for name in shapes}


def _fits(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    return len(shape) == len(wanted) and all(w in (-1, n) for n, w in zip(shape, wanted, strict=True))


def _frozen(module: AnyModule, device: str | torch.device) -> AnyModule:
    return placed(module, device).eval().requires_grad_(False)
