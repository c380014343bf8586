"""Rewards by vision-language models, Qwen2-VL and Qwen2.5-VL. They need transformers.

Modules:
    qwen.py                image patches, chat and memory, shared by the rewards
    vqascore.py            reward of images
    videoreward.py         reward of videos; videoreward_checkpoint.py reads its weights
    videoreward_prompt.py, videoreward_prompt.txt   text that VideoReward was trained with
"""
