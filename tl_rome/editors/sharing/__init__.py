"""Edits, key statistics and trained editors in repositories of the model hub: written with a card, found by model."""
