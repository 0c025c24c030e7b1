"""Other benchmarks' records as COUNTERFACT records, their tests as named groups of prompts."""
