"""Diagnose logs and machines."""
