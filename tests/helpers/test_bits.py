"""The bitwise comparison, on which other tests rely, finds every difference."""

import pytest
import torch
from bits import assert_same_bits
from inputs import negative_nan

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@pytest.mark.parametrize("dtype", DTYPES)
def test_equal_tensors_pass(dtype: torch.dtype) -> None:
    x = torch.tensor([[0.0, -0.0, 1.5], [torch.inf, -torch.inf, torch.nan]], dtype=dtype)
    assert_same_bits(x, x.clone())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_all_nans_are_equal(dtype: torch.dtype) -> None:
    assert_same_bits(torch.stack([negative_nan(dtype)]), torch.tensor([torch.nan], dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("a", "b"), [(0.0, -0.0), (torch.nan, 0.0), (torch.inf, torch.nan), (1.0, "next")])
def test_a_difference_is_found_and_located(dtype: torch.dtype, a: float, b: float | str) -> None:
    x = torch.zeros(3, 4, dtype=dtype)
    y = x.clone()
    x[2, 1] = a
    y[2, 1] = a + torch.finfo(dtype).eps if b == "next" else b
    with pytest.raises(AssertionError, match=r"somewhere: 1 of 12 values differ, the first at \(2, 1\)"):
        assert_same_bits(x, y, "somewhere")


def test_a_difference_in_an_imaginary_part_is_found() -> None:
    x = torch.zeros(4, dtype=torch.complex64)
    y = x.clone()
    y[3] = complex(0.0, -0.0)
    with pytest.raises(AssertionError, match=r"1 of 4 values differ, the first at \(3,\)"):
        assert_same_bits(x, y)


def test_strides_and_lazy_conjugation_do_not_matter() -> None:
    x = torch.randn(4, 6, dtype=torch.complex64)
    assert_same_bits(x.t().conj(), x.t().conj().resolve_conj().contiguous())


@pytest.mark.parametrize("other", [torch.zeros(4), torch.zeros(2, 2), torch.zeros(3, dtype=torch.float64)])
def test_another_shape_or_dtype_fails(other: torch.Tensor) -> None:
    with pytest.raises(AssertionError, match="is not"):
        assert_same_bits(torch.zeros(3), other)
