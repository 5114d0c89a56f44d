"""Text generation: sampling, beam search, speculative decoding, infilling, constraints."""
