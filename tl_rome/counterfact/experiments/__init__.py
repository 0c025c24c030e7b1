"""Experiments built on the evaluation: comparing editors, sweeping a setting, sequential edits, texts side by side."""
