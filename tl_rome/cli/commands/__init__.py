"""The commands of `tl-rome`, a module for each."""
