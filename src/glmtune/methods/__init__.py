"""One file per tuning method: what is trained, and how it is saved and loaded."""
