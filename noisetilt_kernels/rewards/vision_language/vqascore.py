"""Agreement of image and prompt by VQAScore: the probability that a vision-language model answers "Yes"."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from ..checks import check_batch
from ..loading import load_model, make_config, model_config, processor_config
from ..registry import default_source
from ..weightless import default_dtype, placed
from .qwen import Chat, image_patches, recompute_blocks

SOURCE = default_source("vqascore")

QUESTION = 'Does this image show "{}"?'
"""Question of the authors' code (linzhiqiu/t2v_metrics) for Qwen2.5-VL."""
QUESTION_OF_OTHERS = 'Does this figure show "{}"? Please answer yes or no.'
"""Question of the paper, which the authors' code asks most other models."""
ANSWER = "Yes"


class VqaScore:
    """VQAScore: probability that Qwen2.5-VL answers a question with "Yes" (Lin et al., arXiv 2404.01291).

    The value, from 0 to 1, is the probability of the token "Yes" among all tokens as the first token of the
    answer, not its logarithm. The gradient has a factor of at most P (1 - P), so it is small where the model
    is certain. Methods that normalize the gradient are not affected.

    Images (B, 3, H, W) in [0, 1] of any size and B prompts -> float32 (B,). The weights are frozen. Images
    are processed in float32; the model and its gradient are computed in `dtype`, one image at a time.
    Activations are recomputed in the backward pass.

    Args:
        source: folder or hub id of a Qwen2.5-VL of any size, with its tokenizer and image processor.
        device: device of the model and of the images.
        dtype: dtype of the model; None is bfloat16 on GPUs and float32 on the CPU.
        question: text that is asked, with {} once in place of the prompt.
        answer: text whose probability is the value; one token.

    Raises:
        RewardError: the weights or their files are missing or do not match; the message says what to do.
        ValueError: the question does not contain {} once.
    """

    name = "vqascore"
    """Name of the reward, for errors."""

    def __init__(
        self,
        source: str | Path = SOURCE,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        question: str = QUESTION,
        answer: str = ANSWER,
    ) -> None:
        if question.count("{}") != 1:
            raise ValueError(f"VqaScore: question must contain {{}} once, for the prompt, got {question!r}")
        self._question = question
        source, device = str(source), torch.device(device)
        config: Any = make_config(
            self.name, source, Qwen2_5_VLConfig, model_config(self.name, source, ["qwen2_5_vl"])
        )
        self._patches = image_patches(self.name, config.vision_config, processor_config(self.name, source))
        self._chat = Chat(self.name, [source], "image", config.image_token_id)
        self._answer = self._chat.one_token(answer)
        model: Any = load_model(
            self.name,
            Qwen2_5_VLForConditionalGeneration,
            source,
            config,
            "a whole Qwen2.5-VL model",
            dtype or default_dtype(device),
        )
        recompute_blocks(model.model)
        self._model = placed(model, device)

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        check_batch(self.name, images, prompts)
        return torch.stack(
            [self._answer_of(image, prompt) for image, prompt in zip(images, prompts, strict=True)]
        )

    def _answer_of(self, image: Tensor, prompt: str) -> Tensor:
        """Return the probability of the answer, a scalar, for one image (3, H, W)."""
        pixels, grid = self._patches(image[None])
        _, down, across = self._patches.tokens(grid)
        tokens = self._chat.tokens(self._question.replace("{}", prompt), down * across)
        start = int((tokens == self._model.config.image_token_id).nonzero()[0])
        hidden = self._model.model(
            input_ids=tokens[None].to(pixels.device),
            position_ids=positions(len(tokens), start, down, across).to(pixels.device),
            pixel_values=pixels,
            image_grid_thw=grid,
            use_cache=False,
        ).last_hidden_state
        logits = self._model.lm_head(hidden[0, -1]).float()
        return logits.softmax(dim=0)[self._answer]


def positions(length: int, start: int, down: int, across: int) -> Tensor:
    """Return Qwen2-VL's positions (3, 1, length) of the tokens of a text with one image.

    The three numbers of a token are time, row and column. A text token has three equal numbers, one more than
    the token before. The tokens of the image have the same time. The text after the image continues after its
    longer side.

    Args:
        length: number of tokens, those of the image included.
        start: index of the first token of the image.
        down, across: rows and columns of the image, in tokens.
    """
    text = torch.arange(length).expand(3, -1)
    image = start + torch.stack(
        [
            torch.zeros(down * across, dtype=torch.int64),
            torch.arange(down).repeat_interleave(across),
            torch.arange(across).repeat(down),
        ]
    )
    rest = length - start - down * across
    after = start + max(down, across) + text[:, :rest]
    return torch.cat([text[:, :start], image, after], dim=1)[:, None]
