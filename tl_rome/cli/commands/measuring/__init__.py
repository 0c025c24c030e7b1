"""Commands that measure what edits do."""
