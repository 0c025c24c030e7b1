"""Knowledge neurons (KN): which MLP neurons answer a prompt, by integrated gradients, and the edit of their values."""
