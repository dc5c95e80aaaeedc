"""A run as a value: sections, methods, rules between keys, and how recipes are read."""
