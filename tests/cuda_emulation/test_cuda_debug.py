"""Debug build of the CUDA kernels, emulated: a barrier gives up if a block never arrives."""

import pytest
from cuda_emulation.build import load

NOBODY = 99


def test_a_barrier_gives_up_with_rank_target_and_count(capfd: pytest.CaptureFixture[str]) -> None:
    module = load("debug_barrier")
    module.set_device(num_sms=4, threads_per_block=32, seed=1)
    assert module.meet(4, 3, NOBODY) == 12
    assert capfd.readouterr().out == ""
    with pytest.raises(RuntimeError, match="__trap"):
        module.meet(4, 3, 2)
    out = capfd.readouterr().out
    assert "noisetilt: a team barrier gave up: block " in out
    assert " of 4, waits for 12 arrivals and saw 11" in out
    assert module.meet(1, 3, NOBODY) == 0  # a block alone does not wait
