"""Timings: everything that is timed was first shown to be right."""
