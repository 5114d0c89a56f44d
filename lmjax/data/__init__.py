"""The data pipeline from text to batches; independent of models."""
