"""Replacement of the forwards of modules, for gradient checkpointing where a network has none."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch


@contextmanager
def replace_forwards(modules: Sequence[torch.nn.Module], call: Callable[..., Any]) -> Iterator[None]:
    """Replace each module's forward by `call(forward, *arguments)` within the block.

    `forward` is the module's previous forward.
    """
    # offloading hooks set `forward` on the instance: restore it if it was set, else remove ours
    before = [vars(module).get("forward") for module in modules]
    for module in modules:
        module.forward = partial(call, module.forward)
    try:
        yield
    finally:
        for module, forward in zip(modules, before, strict=True):
            del module.forward
            if forward is not None:
                module.forward = forward
