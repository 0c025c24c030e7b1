"""Ways to run the cells of a trace: by definition, and at the least cost."""
