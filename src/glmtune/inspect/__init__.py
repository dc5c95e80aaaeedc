"""What is in a model folder, and what training sees of a row; nothing here changes anything."""
