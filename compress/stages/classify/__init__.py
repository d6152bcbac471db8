"""The stages of a run that makes a classifier, where they are not those of every run."""
