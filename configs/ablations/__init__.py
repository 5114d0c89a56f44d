"""Configs of `python -m experiments.ablate`."""
