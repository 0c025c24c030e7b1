"""What is said of an edit: what the model says with and without it, whether it took, and what suggests damage."""
