"""Evaluation of pretrained models without further training."""
