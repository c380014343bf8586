"""Definition of the operators. The kernel of the Kernel Hub has no compiled libraries."""

from . import schemas

failure: str | None = "the kernel of the Kernel Hub has no compiled library; noisetilt-kernels has one"
"""Reason why there are no C++ kernels."""

cuda_failure: str | None = failure
"""Reason why there are no CUDA kernels."""

_definitions = schemas.define()


def build_info() -> dict[str, str]:
    """Return an empty dictionary: nothing is compiled."""
    return {}


def cuda_build_info() -> dict[str, str]:
    """Return an empty dictionary: nothing is compiled."""
    return {}
