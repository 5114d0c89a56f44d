"""Text to batches; knows no model."""
