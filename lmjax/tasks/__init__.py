"""Fine-tuning: what a pretrained encoder is taught, one file a task."""
