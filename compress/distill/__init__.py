"""Distillation: small separate losses and one training loop."""
