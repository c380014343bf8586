"""Runs of the samplers into folders: what the commands `noisetilt sample`, `optimize` and `compare` are made of."""
