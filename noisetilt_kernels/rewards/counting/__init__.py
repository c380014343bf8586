"""Rewards for the number of objects in an image.

Modules:
    quantity.py            number and noun in a prompt
    count.py               the reward and its judges, with any counter
    t2icount.py            T2ICount, a counter on Stable Diffusion 1.5; needs diffusers and transformers
    t2icount_decoder.py    its decoder, from features of the U-Net to a density of objects
    t2icount_names.py      names of its tensors in the published file
"""
