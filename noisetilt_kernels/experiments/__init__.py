"""Experiments: the tables of the papers, each a TOML file that one command carries out."""
