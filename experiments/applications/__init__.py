"""Programs that combine fine-tuned models, and the code that only they need."""
