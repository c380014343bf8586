"""Image processing, chat and memory of Qwen2-VL and Qwen2.5-VL, shared by the rewards. Needs transformers."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import Qwen2Tokenizer, Qwen2VLModel

from ..checks import RewardError
from ..loading import FAILURES, is_unreachable, load_model
from ..preprocessing import Preprocessing

LONGEST = 200
"""Largest ratio of the sides of an image, the same as in Hugging Face's processors."""

CHATML = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\n<|vision_start|>{pad}<|vision_end|>{text}<|im_end|>\n"
    "<|im_start|>assistant\n"
)
"""Result of the models' chat template for one image or video and a text, for tokenizers without template."""


@dataclass(frozen=True)
class Patches:
    """Image processing of the Qwen vision models, in torch: batched over frames and differentiable.

    Hugging Face's processors do the same with 8-bit frames; the results agree up to their rounding.

    Attributes:
        reward: name of the reward, for errors.
        side: height and width of a patch in pixels.
        merged: number of patches, in each direction, that become one token.
        frames: number of frames in a patch.
        least, most: smallest and largest number of pixels of a resized frame.
        mean, std: mean and standard deviation of red, green and blue for normalization.
    """

    reward: str
    side: int
    merged: int
    frames: int
    least: int
    most: int
    mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Return the height and width to which frames of this size are resized.

        Both are multiples of the side of a token. The proportions are kept approximately, and the product is
        from `least` to `most`.

        Raises:
            ValueError: one side is more than 200 times the other.
        """
        if max(height, width) > LONGEST * min(height, width):
            raise ValueError(
                f"{self.reward}: one side must be at most {LONGEST} times the other, got {height} x {width} "
                "pixels"
            )
        token = self.side * self.merged
        nearest = round(height / token) * token, round(width / token) * token
        if math.prod(nearest) > self.most:
            shrink = math.sqrt(height * width / self.most)
            return (
                max(token, math.floor(height / shrink / token) * token),
                max(token, math.floor(width / shrink / token) * token),
            )
        if math.prod(nearest) < self.least:
            grow = math.sqrt(self.least / (height * width))
            return math.ceil(height * grow / token) * token, math.ceil(width * grow / token) * token
        return nearest

    def __call__(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Return the patches of one image or one video.

        Args:
            frames: (F, 3, H, W) with values in [0, 1]; F = 1 for an image. The last frame is repeated until F
                is a multiple of the frames of a patch.

        Returns:
            Patches, float32 (t h w, 3 `frames` `side`^2), with the patches of each token in consecutive rows;
            and their grid t, h, w, int64 (1, 3).
        """
        size = self.size(*frames.shape[2:])
        resize = Preprocessing(
            shortest_edge=None, size=size, mode="bicubic", crop=None, mean=self.mean, std=self.std
        )
        frames = resize(frames)
        repeated = frames[-1:].expand(-len(frames) % self.frames, -1, -1, -1)
        frames = torch.cat([frames, repeated])
        t, h, w = len(frames) // self.frames, size[0] // self.side, size[1] // self.side
        down, across = (h // self.merged, self.merged, self.side), (w // self.merged, self.merged, self.side)
        # (time, frame, color, *(token, patch, pixel) down, *(token, patch, pixel) across)
        grid = frames.reshape(t, self.frames, 3, *down, *across)
        patches = grid.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(t * h * w, -1)
        return patches, torch.tensor([[t, h, w]], device=frames.device)

    def tokens(self, grid: Tensor) -> tuple[int, int, int]:
        """Return the numbers of tokens in time, rows and columns for a grid of patches."""
        t, h, w = grid[0].tolist()
        return t, h // self.merged, w // self.merged


def image_patches(reward: str, vision: Any, processor: Mapping[str, Any]) -> Patches:
    """Return the image processing for a model.

    Args:
        reward: name of the reward, for errors.
        vision: vision configuration of the model.
        processor: configuration of the image processor; missing entries have the values of Qwen2.5-VL.

    Raises:
        RewardError: the processor asks for an unsupported step.
    """
    for name, only in {"do_resize": True, "do_rescale": True, "do_normalize": True, "resample": 3}.items():
        if processor.get(name, only) != only:
            raise RewardError(
                f"{reward}: the image processor's {name} must be {only}, got {processor[name]!r}; name a "
                "source with the files of Qwen2.5-VL"
            )
    size = processor.get("size") or {}
    patches = Patches(
        reward,
        side=vision.patch_size,
        merged=vision.spatial_merge_size,
        frames=vision.temporal_patch_size,
        least=processor.get("min_pixels") or size.get("shortest_edge", 56 * 56),
        most=processor.get("max_pixels") or size.get("longest_edge", 12_845_056),
        mean=tuple(processor.get("image_mean") or Patches.mean),
        std=tuple(processor.get("image_std") or Patches.std),
    )
    if patches.least > patches.most:
        raise RewardError(
            f"{reward}: the image processor's min_pixels must be at most its max_pixels, got {patches.least} "
            f"and {patches.most}; name a source with the files of Qwen2.5-VL"
        )
    return patches


class Chat:
    """Tokenizer of questions about an image or a video, in the chat format of the model.

    Args:
        reward: name of the reward, for errors.
        sources: folders and hub ids to try for the tokenizer; the first one with the model's tokens is used.
        kind: "image" or "video".
        pad: number of the token that the model replaces by the image or video.
        marks: special tokens that each question contains once; added to the tokenizer if it does not have
            them.

    Attributes:
        marks: numbers of the marks.

    Raises:
        RewardError: there is no such tokenizer, or its chat template has no place for an image or video.
    """

    def __init__(
        self, reward: str, sources: Sequence[str], kind: str, pad: int, marks: Sequence[str] = ()
    ) -> None:
        self._reward, self._kind, self._pad = reward, kind, pad
        self._tokenizer = _load_tokenizer(reward, sources, f"<|{kind}_pad|>", pad)
        self._tokenizer.add_tokens(list(marks), special_tokens=True)
        self.marks: list[int] = self._tokenizer.convert_tokens_to_ids(list(marks))
        if self._numbers("".join(marks)).count(pad) != 1:
            raise RewardError(
                f"{reward}: the chat template of the tokenizer in {' or '.join(sources)} must have one place "
                f"for {kind}s; use the tokenizer of Qwen2-VL or Qwen2.5-VL"
            )

    def tokens(self, text: str, count: int) -> Tensor:
        """Return the tokens of a question, with `count` tokens for the image or video: int64 (L,), CPU.

        Raises:
            ValueError: the text contains the token of the image or video, or a mark more than once.
        """
        numbers = self._numbers(text)
        for number in (self._pad, *self.marks):
            if numbers.count(number) != 1:
                token = self._tokenizer.convert_ids_to_tokens(number)
                raise ValueError(f"{self._reward}: prompts must not contain {token}, got {text[-200:]!r}")
        place = numbers.index(self._pad)
        return torch.tensor([*numbers[:place], *[self._pad] * count, *numbers[place + 1 :]])

    def one_token(self, answer: str) -> int:
        """Return the number of the token for an answer.

        Raises:
            RewardError: the answer has several tokens.
        """
        numbers = self._tokenizer(answer, add_special_tokens=False).input_ids
        if len(numbers) != 1:
            raise RewardError(
                f"{self._reward}: {answer!r} must be one token, but the tokenizer splits it into "
                f"{len(numbers)}; use the tokenizer of Qwen2.5-VL"
            )
        return int(numbers[0])

    def _numbers(self, text: str) -> list[int]:
        """Return the tokens of the question, with one token for the image or video."""
        if self._tokenizer.chat_template is None:
            chat = CHATML.format(pad=f"<|{self._kind}_pad|>", text=text)
        else:
            content = [{"type": self._kind}, {"type": "text", "text": text}]
            chat = self._tokenizer.apply_chat_template(
                [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
            )
        numbers: list[int] = self._tokenizer(chat, add_special_tokens=False).input_ids
        return numbers


def load_marked_model(
    reward: str,
    source: str,
    config: Any,
    tensors: Mapping[str, Tensor],
    chat: Chat,
    wanted: str,
    dtype: torch.dtype,
) -> Any:
    """Return a frozen Qwen2-VL without output layer, whose hidden states at the marks of `chat` are read.

    Activations are recomputed in the backward pass, block by block.

    Args:
        reward: name of the reward, for errors.
        source: place of the tensors, for errors.
        config: configuration of the base model. Its vocabulary is set to the rows of the token embeddings:
            the base model has spare rows, so its vocabulary is larger than the one with the marks.
        tensors: weights by the names of `Qwen2VLModel`; those of an output layer are dropped.
        wanted: what the source must have, for the error.
        dtype: dtype of the weights.

    Raises:
        RewardError: tensors are missing, unknown, or have another shape.
    """
    words = tensors.get("language_model.embed_tokens.weight")
    if words is not None:  # a missing tensor is reported below
        config.text_config.vocab_size = len(words)
    model: Any = load_model(
        reward,
        Qwen2VLModel,
        source,
        config,
        wanted,
        dtype,
        {name: tensor for name, tensor in tensors.items() if not name.startswith("lm_head.")},
        strict=True,
    )
    if max(chat.marks) >= config.text_config.vocab_size:
        raise RewardError(
            f"{reward}: the weights in {source} have {config.text_config.vocab_size} tokens, too few for the "
            f"special tokens of the reward; name a source that has {wanted}"
        )
    recompute_blocks(model)
    return model


def hidden_at_marks(model: Any, chat: Chat, tokens: Tensor, **vision: Tensor) -> Tensor:
    """Return the last hidden states (marks, width) at the marks of one question.

    Args:
        model: see `load_marked_model`.
        chat: chat with the marks.
        tokens: question, int64 (L,).
        vision: arguments of the model for the image or video.
    """
    device = next(model.parameters()).device
    hidden = model(
        input_ids=tokens[None].to(device),
        # Consecutive numbers in all three dimensions of Qwen2-VL. The published models were trained like
        # this: their forward passed no positions, which meant consecutive numbers in transformers 4.45.
        position_ids=torch.arange(len(tokens), device=device).expand(3, 1, -1),
        use_cache=False,
        **vision,
    ).last_hidden_state[0]
    selected: Tensor = hidden[[int((tokens == mark).nonzero()) for mark in chat.marks]]
    return selected


def recompute_blocks(model: Any) -> None:
    """Make both halves of the model recompute their activations in the backward pass, block by block.

    The checkpointing of transformers works in training mode only. The blocks are deterministic, so the state
    of random generators need not be kept.
    """
    for block in (*model.visual.blocks, *model.language_model.layers):
        block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)


def _load_tokenizer(reward: str, sources: Sequence[str], token: str, number: int) -> Any:
    for source in sources:
        try:
            tokenizer = Qwen2Tokenizer.from_pretrained(source, local_files_only=is_unreachable(source))
        except FAILURES:
            continue
        # without files transformers returns a tokenizer with an empty vocabulary, and no error
        if tokenizer.convert_tokens_to_ids(token) == number:
            return tokenizer
    raise RewardError(
        f"{reward}: there is no tokenizer with {token} as number {number}, which the model expects, in "
        f"{' or '.join(sources)}; put its tokenizer.json and tokenizer_config.json beside the weights"
    )
