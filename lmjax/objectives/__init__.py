"""Pretraining objectives: how a batch is corrupted, and what a model is scored on."""
