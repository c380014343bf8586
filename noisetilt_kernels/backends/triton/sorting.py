"""Sorting in registers: order-preserving integer keys, and a bitonic network on them.

An entry is a key and the index of its value, and entries are ordered by both: so equal values keep their order, and
no two entries are equal. Of float32 it is one int64, the key above the index; of float64 (`WIDE`) a pair of an int64
key and an int32 index. What is not WIDE passes its keys for indices, and they are ignored.

Where a branch is taken at compile time, `else` must follow `return`: Triton compiles what stands after it.
"""

import triton
import triton.language as tl

from .arithmetic import pairs, unpaired

LAST = tl.constexpr(2**63 - 1)
"""The key of what is not there, after every other; greater than a NaN's."""


@triton.jit
def entry_of(x, index):
    """The entry of values x, float32 or float64, at an index: (keys, indices).

    The key orders integers as the values are ordered: -0 as +0, and every NaN last and equal (DESIGN section 2).
    """
    if x.dtype == tl.float32:
        bits = x.to(tl.int32, bitcast=True)
        bits = tl.where(x != x, 0x7FC00000, tl.where(x == 0, 0, bits))
        key = bits ^ ((bits >> 31) & 0x7FFFFFFF)
        entry = (key.to(tl.int64) << 32) | index
        return entry, entry
    else:
        bits = x.to(tl.int64, bitcast=True)
        bits = tl.where(x != x, 0x7FF8000000000000, tl.where(x == 0, 0, bits))
        return bits ^ ((bits >> 63) & 0x7FFFFFFFFFFFFFFF), index


@triton.jit
def index_of(key, index, WIDE: tl.constexpr):
    """The index in an entry, int32."""
    if WIDE:
        return index
    else:
        return key.to(tl.int32)


@triton.jit
def precedes(key, index, other_key, other_index, WIDE: tl.constexpr):
    """Whether the first entry comes before the other."""
    if WIDE:
        return (key < other_key) | ((key == other_key) & (index < other_index))
    else:
        return key < other_key


@triton.jit
def _compare_exchange(key, index, turn, DISTANCE: tl.constexpr, WIDE: tl.constexpr):
    """Orders entries DISTANCE apart; descending where their place has the bit `turn`."""
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
    """Sorts sequences of LENGTH entries that are STRIDE apart, ascending; powers of two, and key of one dimension.

    Element (i, j, k) of a tensor (..., LENGTH, STRIDE) is the j-th of sequence (i, k).
    """
    LOG_LENGTH: tl.constexpr = LENGTH.bit_length() - 1
    for stage in tl.static_range(LOG_LENGTH):
        # Sequences of 2^(stage+1), in turns ascending and descending; the last one ascending alone. As a tensor the
        # turn is no part of what Triton compiles a function for: one for each distance, instead of each step.
        turn = tl.full((), STRIDE * 2 ** (stage + 1) if stage + 1 < LOG_LENGTH else 0, tl.int32)
        for step in tl.static_range(stage + 1):
            key, index = _compare_exchange(key, index, turn, STRIDE * 2 ** (stage - step), WIDE)
    return key, index
