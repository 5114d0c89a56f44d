"""Configs: plain data, one file a family; `--config=configs/FILE.py:SIZE`."""
