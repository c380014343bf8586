"""Prompt embeddings: computed once for each prompt and kept on the CPU, as there may be thousands."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from .offload import rewire_offload_hooks

Encoded: TypeAlias = Mapping[str, Tensor]
"""Embeddings of one prompt for the denoiser, by name: tensors (1, ...)."""


class PromptCache:
    """Encodes every distinct prompt once.

    Without it, each step of a sampler would run the text encoders again.

    Args:
        function: name of the model's class, for error messages.
        pipe: pipeline with the text encoders.
        needed: names of its components that `encode` uses.
        encode: function that encodes one prompt.
    """

    def __init__(
        self, function: str, pipe: Any, needed: Sequence[str], encode: Callable[[str], Encoded]
    ) -> None:
        self._function, self._pipe, self._needed, self._encode = function, pipe, needed, encode
        self._encoded: dict[str, Encoded] = {}

    def add(self, prompts: Sequence[str]) -> None:
        """Encode the prompts that are not in the cache.

        Prompts are encoded one at a time, so that an embedding does not depend on other prompts.

        Raises:
            ValueError: the pipeline has no text encoders.
        """
        for prompt in prompts:
            if prompt in self._encoded:
                continue
            missing = [name for name in self._needed if getattr(self._pipe, name) is None]
            if missing:
                raise ValueError(
                    f"{self._function}: pipe has no {', '.join(missing)} to encode {prompt!r} with; "
                    "load it with all of them, call encode(prompts) before they are dropped, or pass the "
                    "embeddings to add_embeddings"
                )
            rewire_offload_hooks(self._pipe)
            with torch.no_grad():
                encoded = self._encode(prompt)
            self.put(prompt, {name: tensor.cpu() for name, tensor in encoded.items()})

    def put(self, prompt: str, encoded: Encoded) -> None:
        """Store the embeddings of a prompt."""
        self._encoded[prompt] = encoded

    def get(self, prompts: Sequence[str]) -> list[Encoded]:
        """Return the embeddings of each prompt. New prompts are encoded, with the errors of `add`."""
        self.add(prompts)
        return [self._encoded[prompt] for prompt in prompts]

    def batch(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Return the embeddings of all prompts as tensors (B, ...) by name.

        Raises:
            ValueError: see `add`; or the embeddings of the prompts differ in their shapes.
        """
        encoded = self.get(prompts)
        for name in encoded[0]:
            shapes = sorted({tuple(tensors[name].shape) for tensors in encoded})
            if len(shapes) > 1:
                raise ValueError(
                    f"{self._function}: embeddings of prompts used together must have the same shape, "
                    f"got {name} of shapes {' and '.join(map(str, shapes))}"
                )
        return {name: torch.cat([tensors[name] for tensors in encoded]) for name in encoded[0]}

    def padded(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor | None]:
        """Return the tokens of all prompts, padded with zeros to the longest, and the mask of the prompts.

        Returns:
            Tokens (B, T, width), and a mask (B, T) that is False for padding; None if nothing is padded.

        Raises:
            ValueError: see `add`.
        """
        tokens = [encoded["tokens"][0] for encoded in self.get(prompts)]
        lengths = [len(one) for one in tokens]
        mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
        return pad_sequence(tokens, batch_first=True), mask if min(lengths) < max(lengths) else None
