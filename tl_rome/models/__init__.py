"""Getting a model: the embedded SmolLM2-135M, hub names and local folders, converted to a TransformerLens class."""
