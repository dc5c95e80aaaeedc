"""A conversation -> token ids and labels; generated ids -> messages."""
