"""Text out of models: sampling, beams, drafts, infilling, constraints."""
