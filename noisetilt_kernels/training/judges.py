"""Classifiers of digits: a network for the reward, and an independent judge trained on other digits."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from sklearn.multiclass import OneVsRestClassifier
from sklearn.svm import SVC
from torch import Generator, Tensor
from torch.nn import functional

from ..rewards.digits import CLASSIFIER_FILE, JUDGE_FILE, DigitClassifier, scan
from .autoencoder import sample_pictures
from .data import Digits, draw_pictures
from .loop import train

COPIES = 6
"""Number of randomly turned and moved copies of each digit that the judge learns from."""

GAMMA, C = 0.15, 10.0
"""Width of the judge's Gaussian kernel, exp(-GAMMA distance^2), and the penalty of its errors."""


def train_judge(digits: Digits, generator: Generator, folder: Path) -> None:
    """Train one support vector machine with a Gaussian kernel for each digit; write judge.safetensors."""
    scans = digits.scans.repeat(COPIES, 1, 1, 1)
    labels = digits.labels.repeat(COPIES)
    features = scan(draw_pictures(scans, generator)).double().numpy()
    machines = OneVsRestClassifier(SVC(kernel="rbf", gamma=GAMMA, C=C)).fit(features, labels.numpy())
    coefficients = torch.zeros(len(features), 10, dtype=torch.float64)
    for digit, machine in enumerate(machines.estimators_):
        coefficients[machine.support_, digit] = torch.from_numpy(machine.dual_coef_[0])
    used = (coefficients != 0).any(dim=1)
    _save(
        {
            "support_vectors": torch.from_numpy(features)[used].float(),
            "coefficients": coefficients[used].float(),
            "intercept": torch.tensor([machine.intercept_[0] for machine in machines.estimators_]).float(),
            "gamma": torch.tensor(GAMMA),
        },
        folder / JUDGE_FILE,
    )


def train_classifier(digits: Digits, generator: Generator, steps: int, folder: Path, batch: int = 64) -> None:
    """Train the classifier for the reward "digit"; write classifier.safetensors to `folder`."""
    network = DigitClassifier()

    def batch_loss() -> Tensor:
        pictures, labels = sample_pictures(digits, generator, batch)
        # with noise, because the reward also judges unfinished pictures
        t = torch.rand(batch, 1, 1, 1, generator=generator) * 0.3
        pictures = (pictures + t * torch.randn(pictures.shape, generator=generator)).clamp(0, 1)
        return functional.nll_loss(network(pictures), labels)

    train("classifier", network, batch_loss, steps=steps, lr=2e-3)
    _save(network.state_dict(), folder / CLASSIFIER_FILE)


def _save(tensors: dict[str, Tensor], file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)
