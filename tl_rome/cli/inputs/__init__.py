"""What options name, read: texts, examples for training, key statistics."""
