"""Sorting in registers: order-preserving integer keys, and a bitonic network on them.

An entry is the key of a value and its index. Entries are ordered by both, so equal values keep their order
and no two entries are equal. A float32 entry is one int64: the key in the upper half, the index in the lower
half. A float64 entry (`WIDE`) is a pair of an int64 key and an int32 index. Functions that are not WIDE
ignore the indices, and get the keys in their place.

After a compile-time `if` with `return`, an `else` is needed: Triton compiles the code that follows.
"""

import torch
import triton
import triton.language as tl

from .arithmetic import pairs, unpaired

LAST = tl.constexpr(2**63 - 1)
"""Key of padding. It sorts after every other key, NaN included."""
KEYS = {torch.float32: torch.int32, torch.float64: torch.int64}
"""Types of the keys of values."""


@triton.jit
def key_of(x):
    """Keys of values x: int32 for float32, int64 for float64, in the order of the values.

    -0 equals +0, and all NaN are equal and last (DESIGN section 2).
    """
    if x.dtype == tl.float32:
        bits = x.to(tl.int32, bitcast=True)
        bits = tl.where(x != x, 0x7FC00000, tl.where(x == 0, 0, bits))
        return bits ^ ((bits >> 31) & 0x7FFFFFFF)
    else:
        bits = x.to(tl.int64, bitcast=True)
        bits = tl.where(x != x, 0x7FF8000000000000, tl.where(x == 0, 0, bits))
        return bits ^ ((bits >> 63) & 0x7FFFFFFFFFFFFFFF)


@triton.jit
def entry_of(key, index, WIDE: tl.constexpr):
    """Entries (keys, indices) of keys of values, with these indices."""
    if WIDE:
        return key, index
    else:
        entry = (key.to(tl.int64) << 32) | index
        return entry, entry


@triton.jit
def parts_of(key, index, WIDE: tl.constexpr):
    """Inverse of `entry_of`: keys of values, and int32 indices."""
    if WIDE:
        return key, index
    else:
        return (key >> 32).to(tl.int32), key.to(tl.int32)


@triton.jit
def precedes(key, index, other_key, other_index, WIDE: tl.constexpr):
    """Return True where the first entry comes before the other."""
    if WIDE:
        return (key < other_key) | ((key == other_key) & (index < other_index))
    else:
        return key < other_key


@triton.jit
def _compare_exchange(key, index, turn, DISTANCE: tl.constexpr, WIDE: tl.constexpr):
    """Order pairs of entries DISTANCE apart. They descend where their place has the bit `turn`, and ascend
    elsewhere.
    """
    HALF: tl.constexpr = key.numel // 2
    first, second = pairs(key, DISTANCE)
    descending = (tl.arange(0, HALF // DISTANCE)[:, None] * (2 * DISTANCE) & turn) != 0
    if WIDE:
        first_index, second_index = pairs(index, DISTANCE)
        swap = precedes(second, second_index, first, first_index, WIDE) != descending
        index = unpaired(
            tl.where(swap, second_index, first_index), tl.where(swap, first_index, second_index), DISTANCE
        )
    else:
        swap = (second < first) != descending
    return unpaired(tl.where(swap, second, first), tl.where(swap, first, second), DISTANCE), index


@triton.jit
def sort_entries(key, index, STRIDE: tl.constexpr, LENGTH: tl.constexpr, WIDE: tl.constexpr):
    """Sort sequences of LENGTH entries that are STRIDE apart, ascending. Both are powers of two, keys are a
    vector.

    Read as a tensor (..., LENGTH, STRIDE), element (i, j, k) is the j-th entry of sequence (i, k).
    """
    LOG_LENGTH: tl.constexpr = LENGTH.bit_length() - 1
    for stage in tl.static_range(LOG_LENGTH):
        # Sequences of 2^(stage+1) entries, alternately ascending and descending. The last stage has one,
        # ascending. `turn` is a tensor, not a constant: Triton then compiles one function per distance
        # instead of one per step.
        turn = tl.full((), STRIDE * 2 ** (stage + 1) if stage + 1 < LOG_LENGTH else 0, tl.int32)
        for step in tl.static_range(stage + 1):
            key, index = _compare_exchange(key, index, turn, STRIDE * 2 ** (stage - step), WIDE)
    return key, index
