"""Functions that cut a finished change: RECT and PRUNE."""
