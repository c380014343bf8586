"""Prompts as a denoiser takes them: encoded once, and kept on the CPU, as there may be thousands."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from .offload import keep_until_backward

Encoded: TypeAlias = Mapping[str, Tensor]
"""What a denoiser is given of one prompt, by name: tensors (1, ...)."""


class PromptCache:
    """Encodes every distinct prompt once.

    Args:
        function: for errors.
        pipe: whose text encoders are used.
        needed: names of them.
        encode: encodes a prompt by them.
    """

    def __init__(
        self, function: str, pipe: Any, needed: Sequence[str], encode: Callable[[str], Encoded]
    ) -> None:
        self._function, self._pipe, self._needed, self._encode = function, pipe, needed, encode
        self._encoded: dict[str, Encoded] = {}

    def add(self, prompts: Sequence[str]) -> None:
        """Encode those that are new, one at a time, so that what comes out depends on no other prompt.

        Raises:
            ValueError: the pipeline has no text encoders.
        """
        for prompt in prompts:
            if prompt not in self._encoded:
                missing = [name for name in self._needed if getattr(self._pipe, name) is None]
                if missing:
                    raise ValueError(
                        f"{self._function}: pipe has no {', '.join(missing)} to encode {prompt!r} with; load it with "
                        "all of them, or call encode(prompts) before they are dropped"
                    )
                keep_until_backward(self._pipe)
                with torch.no_grad():
                    self._encoded[prompt] = {
                        name: tensor.cpu() for name, tensor in self._encode(prompt).items()
                    }

    def keep(self, prompt: str, encoded: Encoded) -> None:
        """Take a prompt as already encoded."""
        self._encoded[prompt] = encoded

    def each(self, prompts: Sequence[str]) -> list[Encoded]:
        """The prompts, encoded. Raises as `add`."""
        self.add(prompts)
        return [self._encoded[prompt] for prompt in prompts]

    def batch(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """The prompts, encoded, as tensors (B, ...) by name. Raises as `add`."""
        encoded = self.each(prompts)
        return {name: torch.cat([each[name] for each in encoded]) for name in encoded[0]}
