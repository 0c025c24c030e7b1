"""KE: a network that reads the new fact and gates the gradient of each matrix."""
