"""In and out: published checkpoints of Hugging Face's format, and runs of lmjax."""
