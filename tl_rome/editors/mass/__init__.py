"""Mass editing: many facts in one change of a few layers (MEMIT, EMMET, AlphaEdit, PMET), by one closed form."""
