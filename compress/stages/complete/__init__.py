"""The stages of a model that completes code."""
