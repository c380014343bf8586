"""Rewards by CLIP, SigLIP and BLIP, models that compare an image with a short text. They need transformers.

Modules:
    image_text.py          cosine of image and text, shared by the rewards that use a `CLIPModel`
    vision.py              vision half of a CLIP model, and embeddings of images
    clip_score.py, pickscore.py, hpsv2.py, aesthetic.py   rewards by CLIP
    aesthetic_v2_5.py      reward by SigLIP
    imagereward.py         reward by BLIP
    mps.py                 reward by CLIP with cross-attention, cross_attention.py
    open_clip.py, vit_h.py   published checkpoints that are not in the format of transformers
    linear_head.py         layers that turn an embedding into a score
"""
