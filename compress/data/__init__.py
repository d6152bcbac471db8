"""Readers of labelled data, corpora mined from installed code, splits and leakage checks."""
