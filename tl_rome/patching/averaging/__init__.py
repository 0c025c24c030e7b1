"""From traces of many facts to averages: what a model knows, traces in a folder, roles of tokens, the layer to edit."""
