"""COUNTERFACT records: loading, building and checking them, and the texts that RS compares with."""
