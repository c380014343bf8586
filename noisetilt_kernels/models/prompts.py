"""Prompts as FLUX takes them: encoded once, kept on the device."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from diffusers import FluxPipeline
from torch import Tensor

from .offload import execution_device, keep_until_backward

_ENCODERS = ("tokenizer", "tokenizer_2", "text_encoder", "text_encoder_2")


class Encoded(NamedTuple):
    """What the transformer is given of B prompts."""

    tokens: Tensor
    """Of T5, (B, L, D)."""
    pooled: Tensor
    """Of CLIP, (B, P)."""
    ids: Tensor
    """Positions, (L, 3); the same for all prompts."""


class PromptCache:
    """Encodes every distinct prompt once.

    Args:
        function: for errors.
        pipe: whose text encoders are used.
        length: tokens of T5 that a prompt is cut or padded to.
    """

    def __init__(self, function: str, pipe: FluxPipeline, length: int) -> None:
        self.length = length
        self._function, self._pipe = function, pipe
        self._encoded: dict[str, Encoded] = {}

    def add(self, prompts: Sequence[str]) -> None:
        """Encode those that are new, one at a time, so that what comes out depends on no other prompt.

        Raises:
            ValueError: the pipeline has no text encoders.
        """
        for prompt in prompts:
            if prompt not in self._encoded:
                self._encoded[prompt] = self._encode(prompt)

    def keep(self, prompt: str, encoded: Encoded) -> None:
        """Take a prompt as already encoded."""
        self._encoded[prompt] = encoded

    def batch(self, prompts: Sequence[str], dtype: torch.dtype) -> Encoded:
        """The prompts, encoded, on the transformer's device. Raises as `add`."""
        self.add(prompts)
        device = execution_device(self._pipe.transformer)
        encoded = [self._encoded[prompt] for prompt in prompts]
        return Encoded(
            torch.cat([each.tokens for each in encoded]).to(device, dtype),
            torch.cat([each.pooled for each in encoded]).to(device, dtype),
            encoded[0].ids.to(device),
        )

    def _encode(self, prompt: str) -> Encoded:
        missing = [name for name in _ENCODERS if getattr(self._pipe, name) is None]
        if missing:
            raise ValueError(
                f"{self._function}: pipe has no {', '.join(missing)} to encode {prompt!r} with; load it with all of "
                "them, or call encode(prompts) before they are dropped"
            )
        keep_until_backward(self._pipe)
        with torch.no_grad():
            return Encoded(
                *self._pipe.encode_prompt(
                    prompt, device=execution_device(self._pipe.transformer), max_sequence_length=self.length
                )
            )
