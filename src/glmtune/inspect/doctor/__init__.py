"""Diagnose machines and the logs of failed runs."""
