"""Layers and pure functions; independent of objectives and data."""
