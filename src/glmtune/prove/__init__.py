"""What is shown of a run: proofs, metrics, the report."""
