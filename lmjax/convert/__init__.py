"""Loading and saving of models: runs of lmjax and Hugging Face checkpoints."""
