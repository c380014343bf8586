"""The reward of showing what the prompt says: the probability that a vision language model answers "Yes" (VQAScore)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from ..checks import check_batch
from ..loading import default_dtype, load_model, model_config, processor_config
from ..registry import default_source
from .qwen import Chat, image_patches, recompute_blocks

SOURCE = default_source("vqascore")

QUESTION = 'Does this figure show "{prompt}"? Please answer yes or no.'
ANSWER = "Yes"


class VqaScore:
    """P("Yes") of Qwen2.5-VL for `QUESTION`, as VQAScore defines it (Lin et al., arXiv 2404.01291): 0 to 1.

    It is the probability, not its logarithm, as VQAScore has it: of the token "Yes" among all tokens, right after the
    question. Where the model is sure its gradient is small, by the factor P (1 - P) at most; methods that scale the
    gradient themselves do not notice.

    Images (B, 3, H, W) in [0, 1] of any size and B prompts -> float32 (B,). The weights are frozen. Images are
    processed in float32 and go through the model in `dtype`, one at a time, and so does the gradient; activations are
    computed again in the backward.

    Args:
        source: folder or hub id of a Qwen2.5-VL of any size, with its tokenizer and image processor.
        device: of the model, and where images will be.
        dtype: of the model; None is bfloat16 on GPUs and float32 on the CPU.

    Raises:
        RewardError: something is missing or does not belong together; the message says what to do.
    """

    def __init__(
        self,
        source: str | Path = SOURCE,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
    ) -> None:
        source, device = str(source), torch.device(device)
        config: Any = Qwen2_5_VLConfig.from_dict(dict(model_config("vqascore", source, ["qwen2_5_vl"])))
        self._patches = image_patches("vqascore", config.vision_config, processor_config("vqascore", source))
        self._chat = Chat("vqascore", [source], "image", config.image_token_id)
        self._yes = self._chat.one_token(ANSWER)
        model: Any = load_model(
            "vqascore",
            Qwen2_5_VLForConditionalGeneration,
            source,
            config,
            "a whole Qwen2.5-VL model",
            dtype or default_dtype(device),
        )
        recompute_blocks(model.model)
        self._model = model.to(device)

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        check_batch("vqascore", images, prompts)
        return torch.stack(
            [self._yes_of(image, prompt) for image, prompt in zip(images, prompts, strict=True)]
        )

    def _yes_of(self, image: Tensor, prompt: str) -> Tensor:
        """Of one image (3, H, W): ()."""
        pixels, grid = self._patches(image[None])
        _, down, across = self._patches.tokens(grid)
        tokens = self._chat.tokens(QUESTION.format(prompt=prompt), down * across)
        start = int((tokens == self._model.config.image_token_id).nonzero()[0])
        hidden = self._model.model(
            input_ids=tokens[None].to(pixels.device),
            position_ids=positions(len(tokens), start, down, across).to(pixels.device),
            pixel_values=pixels,
            image_grid_thw=grid,
            use_cache=False,
        ).last_hidden_state
        logits = self._model.lm_head(hidden[0, -1]).float()
        return logits.softmax(dim=0)[self._yes]


def positions(length: int, start: int, down: int, across: int) -> Tensor:
    """Positions in time, down and across of the tokens around one image, (3, 1, length), as Qwen2-VL numbers them.

    Text counts on in all three at once. The image, `down` x `across` tokens from number `start` on, is at one time, and
    the text after it goes on after the longer side.
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
