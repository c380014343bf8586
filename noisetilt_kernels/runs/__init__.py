"""Runs of the samplers into folders, for the commands `noisetilt sample`, `optimize` and `compare`."""
