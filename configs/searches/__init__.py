"""Configs of `python -m experiments.search`."""
