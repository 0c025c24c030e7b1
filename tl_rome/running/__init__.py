"""Running a model: whole, in part or block by block, with hooks on it, and left as it was found whatever happens."""
