"""Data that ships with the package, written by its authors: names of subjects and key statistics."""
