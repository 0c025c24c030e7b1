"""Metrics of one record: of prompts, of generated texts, and as the columns of a table."""
