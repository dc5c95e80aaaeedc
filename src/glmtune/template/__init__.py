"""Encode conversations as token ids and labels, and parse generated ids into messages."""
