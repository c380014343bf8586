"""Class probabilities of images by Inception v3. Needs torchvision, which downloads the weights."""

from pathlib import Path

import torch
from torch import Tensor
from torchvision.models import Inception_V3_Weights, inception_v3

from ..hub import first_sentence
from .checks import RewardError
from .weightless import is_weightless, placed


class InceptionProbabilities:
    """Probabilities of the 1000 classes of ImageNet: images (B, 3, H, W) in [0, 1] -> float32 (B, 1000).

    The network and the image processing are those of torchvision. Its weights and so its Inception Scores
    are not those of the original code in TensorFlow.

    Args:
        device: device of the model and of the images.

    Raises:
        RewardError: the weights cannot be downloaded, or their file is damaged.
    """

    def __init__(self, device: str | torch.device = "cpu") -> None:
        weights = Inception_V3_Weights.IMAGENET1K_V1
        self._preprocess = weights.transforms()
        try:
            model = (
                inception_v3(weights=None, init_weights=False)
                if is_weightless()
                else inception_v3(weights=weights)
            )
        except (OSError, RuntimeError) as error:
            file = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
            raise RewardError(
                f"inception: torchvision cannot load {weights.url} ({first_sentence(error)}); check the "
                f"network, or put that file at {file}"
            ) from None
        self._model = placed(model, device).eval().requires_grad_(False)

    def __call__(self, images: Tensor) -> Tensor:
        logits: Tensor = self._model(self._preprocess(images.float()))
        return logits.softmax(dim=1)
