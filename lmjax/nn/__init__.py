"""Layers and the pure functions under them; they know neither objectives nor data."""
