"""Configs of `python -m experiments.finetune`."""
