"""Namespace of the operators: `torch.ops.noisetilt`.

In a kernel for Hugging Face's Kernel Hub another module takes the place of this one (hub/build.py). It has
the same two names, and a namespace that no other build has.
"""

import torch

ops = torch.ops.noisetilt


def add_op_namespace_prefix(op_name: str) -> str:
    """Return the full name of an operator, "noisetilt::NAME"."""
    return f"noisetilt::{op_name}"
