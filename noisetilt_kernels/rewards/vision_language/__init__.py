"""Rewards by vision-language models, Qwen2-VL and Qwen2.5-VL. They need transformers.

Modules:
    qwen.py                image patches, chat, marks and memory, shared by the rewards
    vqascore.py, hpsv3.py  rewards of images
    vlm.py, vlm_question.py   reward by a question about the image, and its drawings
    videoreward.py         reward of videos; videoreward_checkpoint.py reads its weights
    hpsv3_prompt.*, videoreward_prompt.*   texts that HPSv3 and VideoReward were trained with
"""
