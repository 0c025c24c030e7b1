"""Does the trace of a fact say which layer to edit? The question that Hase et al. (2023) put to ROME."""
