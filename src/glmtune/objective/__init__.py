"""What a step minimizes: next tokens, preferences, blank infilling."""
