"""Text from a pretrained model: one door, `lmjax.generation.generate.generate`."""
