"""Measuring what editors do to records, in one process, several, or on Ray."""
