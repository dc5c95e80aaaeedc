"""Pages to look at: what a run did and proved, and rows as training sees them."""
