"""Data sets: where each is had, in what form, under what licence."""
