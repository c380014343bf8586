"""Rewards to steer sampling by and to judge its images with: functions of images and prompts (DESIGN section 7).

    reward = rewards.load_rewards("aesthetic=1,brightness=-0.5", device="cuda")
    result = sampling.ntrk(model, reward, ["a cat"] * 4)

They are batched, and no image changes the reward of another. All but "digit-judge" are differentiable. Those by models
of transformers are in modules of their own, which are imported only when one of them is loaded. Most are of images;
`PerFrame` makes a reward of videos of one.
"""

from ..sampling import Reward
from .checks import RewardError
from .digits import DigitClassifier, DigitJudge, digit_of
from .frames import PerFrame
from .registry import REWARDS, check_prompts, load_reward, load_rewards, parse_weights
from .weighted import WeightedSum

__all__ = [
    "REWARDS",
    "DigitClassifier",
    "DigitJudge",
    "PerFrame",
    "Reward",
    "RewardError",
    "WeightedSum",
    "check_prompts",
    "digit_of",
    "load_reward",
    "load_rewards",
    "parse_weights",
]
