"""Running the edited blocks alone: the inner pass that gives gradients, and the outer pass of edited models."""
