"""Saved predictions and a reference in, scores out. Runs no model, loads neither torch nor transformers."""
