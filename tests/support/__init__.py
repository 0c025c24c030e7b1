"""What tests share: tiny models, example facts and records, and comparisons."""
