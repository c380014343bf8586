"""Training of the bundled models in `noisetilt_kernels/assets`: `python -m noisetilt_kernels.training`.

The models have FLUX's architecture, are small enough for CPUs, and are trained from scratch on
scikit-learn's handwritten digits. Training needs scikit-learn, diffusers and transformers. Using the models
needs no scikit-learn.
"""
