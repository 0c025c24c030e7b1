"""MEND (Mitchell et al. 2022): a gradient, taken apart into its rows and transformed, is the edit."""
