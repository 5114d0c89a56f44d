"""What a pretrained model does, looked at without training it further."""
