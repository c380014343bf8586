"""Rewards that steer sampling and judge its results: functions of images and prompts (DESIGN section 7).

    reward = rewards.load_rewards("aesthetic=1,brightness=-0.5", device="cuda")
    result = sampling.ntrk(model, reward, ["a cat"] * 4)

A reward takes images (B, 3, H, W) with values in [0, 1] and B prompts, and returns (B,). Each image is scored
independently of the others in its batch. All bundled rewards are differentiable but the judges
"digit-judge", "count-error" and "count-exact". Most score images; `PerFrame` turns a reward of images into a
reward of videos. Rewards that need transformers are imported when they are loaded.

    registry.py            the bundled rewards by name
    spec.py                a reward as the user names it, parsed once; loading
    simple.py, digits.py   rewards that need no download
    clip/                  CLIP and BLIP models
    vision_language/       Qwen2-VL and Qwen2.5-VL models
    counting/              numbers of objects
    frames.py, weighted.py, custom.py   rewards of videos, weighted sums, the user's code
    weightless.py          rewards without weights, to count their memory
"""

from ..sampling import Reward
from .checks import RewardError
from .digits import DigitClassifier, DigitJudge, digit_of
from .frames import PerFrame
from .registry import REWARDS
from .spec import RewardSpec, check_prompts, load_reward, load_rewards, parse_rewards, parse_weights
from .weighted import WeightedSum

__all__ = [
    "REWARDS",
    "DigitClassifier",
    "DigitJudge",
    "PerFrame",
    "Reward",
    "RewardError",
    "RewardSpec",
    "WeightedSum",
    "check_prompts",
    "digit_of",
    "load_reward",
    "load_rewards",
    "parse_rewards",
    "parse_weights",
]
