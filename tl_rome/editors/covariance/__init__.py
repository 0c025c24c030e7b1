"""Key statistics C = E[k k^T]: estimating, storing, importing and judging them."""
