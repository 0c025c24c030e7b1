"""Keys and states of the edited layers, measured while they are written one after another."""
