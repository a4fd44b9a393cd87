"""Experiments: what is trained on what, and what came out."""
