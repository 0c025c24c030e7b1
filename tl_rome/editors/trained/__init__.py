"""Editors that are trained: a network turns the gradient of a fact into a change of weights."""
