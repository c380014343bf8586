"""How the models in `noisetilt_kernels/assets` are made, from scratch: `python -m noisetilt_kernels.training`.

They are FLUX's own architecture at the size of a CPU, trained on scikit-learn's handwritten digits. Needs scikit-learn,
diffusers and transformers; what uses the models needs no scikit-learn.
"""
