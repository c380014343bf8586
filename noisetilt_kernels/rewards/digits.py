"""Rewards for handwritten digits: a network with a gradient, and a judge of another kind that only judges.

Their weights are made by `python -m noisetilt_kernels.training`. The judge is a support vector machine that learns from
other digits than the network does, so that images which merely exploit the network do not please it.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from .checks import RewardError, check_batch

ASSETS = Path(__file__).parents[1] / "assets"
"""Where the models are that come with the package."""
DIGIT_REWARDS = ASSETS / "digit-rewards"
CLASSIFIER_FILE, JUDGE_FILE = "classifier.safetensors", "judge.safetensors"

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SIDE = 32
"""Height and width in pixels of the images that the classifier sees."""
SCAN_SIDE = 8
"""Height and width in pixels of what the judge sees."""

# Not within another word or number ("seventy", "17", "7.5"), nor joined to one by a hyphen ("twenty-seven").
_NAMED = re.compile(rf"(?<![\w-])(?<!\d[.,])({'|'.join(WORDS)}|[0-9])(?![\w-])(?![.,]\d)", re.IGNORECASE)

AnyModule = TypeVar("AnyModule", bound=nn.Module)


def digit_of(prompt: str) -> int:
    """The digit that a prompt names, as a word ("seven") or a numeral ("7"); it may do so more than once.

    Raises:
        ValueError: the prompt names no digit, or several.
    """
    named = {found.lower() for found in _NAMED.findall(prompt)}
    digits = {WORDS.index(name) if name in WORDS else int(name) for name in named}
    if len(digits) != 1:
        which = f"it names {', '.join(map(str, sorted(digits)))}" if digits else "it names none"
        raise ValueError(
            f"digit_of: prompt must name exactly one digit, such as 'a handwritten seven'; {which}: {prompt!r}"
        )
    return digits.pop()


def scan(images: Tensor) -> Tensor:
    """Images (B, 3, H, W) -> (B, 64): grey means over the 8 x 8 tiles, as scikit-learn's digits are stored."""
    return functional.adaptive_avg_pool2d(images.mean(dim=1), SCAN_SIDE).flatten(1)


class DigitClassifier(nn.Module):
    """Images (B, 3, H, W) in [0, 1] -> log-probabilities (B, 10) of the digits.

    A small convolutional network on the grey image at 32 x 32. It is smooth, and its normalisation is of each image by
    itself, so that its gradient is good for guidance and no image changes the result of another.
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
        # ink is 1 and paper 0: centred
        logits: Tensor = self.layers(2 * resized - 1)
        return logits.log_softmax(dim=1)


class DigitJudge(nn.Module):
    """Images (B, 3, H, W) in [0, 1] -> the digit that each shows, int64 (B,), without gradient.

    One support vector machine with a Gaussian kernel for each digit against all others; the highest score decides.

    Args:
        support_vectors: (n, 64), as `scan` gives them.
        coefficients: (n, 10), of each support vector in the score of each digit.
        intercept: (10,).
        gamma: (), of the kernel exp(-gamma |x - y|^2).
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
        """Images (B, 3, H, W) -> (B, 10), higher is more certain."""
        # without the matrix product, which loses the distances of close vectors
        distances = torch.cdist(
            scan(images.to(self.gamma.dtype)),
            self.support_vectors,
            compute_mode="donot_use_mm_for_euclid_dist",
        )
        return torch.exp(-self.gamma * distances**2) @ self.coefficients + self.intercept

    def forward(self, images: Tensor) -> Tensor:
        return self.scores(images).argmax(dim=1)


class DigitReward:
    """Log-probability of the prompt's digit, at most 0; differentiable.

    Args:
        source: folder with `classifier.safetensors`.
        device: where images will be.

    Raises:
        RewardError: there is no such file, or it holds something else.
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
    """1 where the judge sees the prompt's digit, 0 elsewhere: its mean is an accuracy. It has no gradient.

    Args:
        source: folder with `judge.safetensors`.
        device: where images will be.

    Raises:
        RewardError: there is no such file, or it holds something else.
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
    """The float32 tensors of a file, checked to be of these names and shapes; -1 is any size."""
    if not file.is_file():
        raise RewardError(
            f"there is no {file}; `python -m noisetilt_kernels.training` makes it, "
            "or name a folder that has it as the reward's source"
        )
    try:
        tensors = load_file(file)
    except SafetensorError as error:
        raise RewardError(
            f"{file} is not a whole safetensors file ({error}); make or fetch it again"
        ) from None
    for name, wanted in shapes.items():
        found = tuple(tensors[name].shape) if name in tensors else None
        if found is None or not _fits(found, wanted):
            raise RewardError(
                f"{file} must hold {name} of shape {wanted} (-1 is any size), got {found}; "
                "`python -m noisetilt_kernels.training` makes such a file"
            )
    return {name: tensors[name].float() for name in shapes}


def _fits(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    return len(shape) == len(wanted) and all(w in (-1, n) for n, w in zip(shape, wanted, strict=True))


def _frozen(module: AnyModule, device: str | torch.device) -> AnyModule:
    return module.to(device).eval().requires_grad_(False)
