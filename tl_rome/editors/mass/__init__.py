"""Many facts in one edit: MEMIT and its kin, and what is done to a finished change."""
