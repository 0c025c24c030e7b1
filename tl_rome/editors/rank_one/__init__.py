"""Rank-one model editing (ROME): k*, v* and the closed form, with each source of it as a preset."""
