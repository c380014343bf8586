"""Reward-guided sampling with whitened gradients: NTRK, WGNC and their baselines (DESIGN section 7).

A sampler is a function of a model, a reward and prompts:

    options = sampling.SamplerOptions(seed=0, micro_batch=4)
    result = sampling.ntrk(model, reward, ["a cat"] * 4, rho=0.3, options=options)
    image = model.decode(result.latents[[result.best]].to(model.device))
"""

from .base import base
from .best_of_n import best_of_n
from .das import das
from .dno import dno
from .dps import dps
from .fk import fk
from .freedom import freedom
from .guided import GuidedSteps
from .methods import Method, parse_method
from .mpgr import mpgr
from .ntrk import ntrk
from .operators import OPERATORS, Operator
from .options import NON_FINITE, SamplerOptions
from .prno import prno
from .protocols import FlowModel, OneStepModel, Reward
from .psi import psi
from .rbf import rbf
from .records import RecordWriter, StepRecord
from .registry import SAMPLERS, Parameter, Sampler, register_sampler
from .reno import reno
from .result import FinishedParticle, NonFiniteError, Result
from .schedules import SCHEDULES, VP_SCHEDULES, Schedule
from .starts import PCNL, STARTS, FromImage, Start
from .stepwise import SamplingRun, StepOutput, stepwise
from .svdd import svdd
from .wgnc import wgnc

__all__ = [
    "NON_FINITE",
    "OPERATORS",
    "PCNL",
    "SAMPLERS",
    "SCHEDULES",
    "STARTS",
    "VP_SCHEDULES",
    "FinishedParticle",
    "FlowModel",
    "FromImage",
    "GuidedSteps",
    "Method",
    "NonFiniteError",
    "OneStepModel",
    "Operator",
    "Parameter",
    "RecordWriter",
    "Result",
    "Reward",
    "Sampler",
    "SamplerOptions",
    "SamplingRun",
    "Schedule",
    "Start",
    "StepOutput",
    "StepRecord",
    "base",
    "best_of_n",
    "das",
    "dno",
    "dps",
    "fk",
    "freedom",
    "mpgr",
    "ntrk",
    "parse_method",
    "prno",
    "psi",
    "rbf",
    "register_sampler",
    "reno",
    "stepwise",
    "svdd",
    "wgnc",
]
