"""Two-level order statistics (2OS): sort, clip, unsort."""

import torch
from torch import Tensor


def project_2os(x: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """Sort, clip and unsort every sample: project onto {Y : lower <= sort_0(sort_1(Y)) <= upper} (DESIGN
    section 2).

    Args:
        x: samples (B, N), float32 or float64, read row-major as M chunks of D values, N = M*D.
        lower, upper: table (M, D) of x's dtype, on x's device.

    Returns:
        Tensor (B, N). The value of rank j in its chunk and rank r across chunks is clipped to [lower[r, j],
        upper[r, j]] and stays in its place. Both sorts are stable. -0 equals +0. NaN sorts last and is not
        clipped.
    """
    y = x.reshape(x.shape[0], *lower.shape)  # [B, M, D]
    # Sort keys: one positive NaN for every NaN, and +0 for every zero. Otherwise
    # backends would order them differently.
    key = torch.where(y.isnan(), torch.nan, y + 0.0)
    key, in_chunk = key.sort(dim=2, stable=True)
    across = key.argsort(dim=1, stable=True)

    sorted_y = y.gather(2, in_chunk).gather(1, across)
    clipped = torch.where(sorted_y < lower, lower, torch.where(sorted_y > upper, upper, sorted_y))

    rows = torch.empty_like(clipped).scatter_(1, across, clipped)
    return torch.empty_like(rows).scatter_(2, in_chunk, rows).reshape(x.shape)
