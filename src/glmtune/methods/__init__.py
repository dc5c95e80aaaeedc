"""Tuning methods, one file each: what is trained, and how it is saved and loaded."""
