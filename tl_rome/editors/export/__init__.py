"""Edits as other libraries take them."""
