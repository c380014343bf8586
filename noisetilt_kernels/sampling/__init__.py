"""Reward-guided sampling with whitened gradients: NTRK, WGNC and their baselines (DESIGN section 7).

Plain functions over a small protocol of models and rewards:

    result = sampling.ntrk(model, reward, ["a cat"] * 4, rho=0.3, run=sampling.Run(seed=0, micro_batch=4))
    image = model.decode(result.latents[[result.best]].to(model.device))
"""

from .operators import OPERATORS
from .protocols import FlowModel, OneStepModel, Reward
from .records import RecordWriter, StepRecord
from .run import NON_FINITE, FinishedParticle, NonFiniteError, Result, Run
from .samplers import base, best_of_n, dps, ntrk, svdd
from .schedules import SCHEDULES, Schedule
from .wgnc import wgnc

__all__ = [
    "NON_FINITE",
    "OPERATORS",
    "SCHEDULES",
    "FinishedParticle",
    "FlowModel",
    "NonFiniteError",
    "OneStepModel",
    "RecordWriter",
    "Result",
    "Reward",
    "Run",
    "Schedule",
    "StepRecord",
    "base",
    "best_of_n",
    "dps",
    "ntrk",
    "svdd",
    "wgnc",
]
