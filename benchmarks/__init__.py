"""Each figure that is claimed, as a script that prints it beside a peer's: python -m benchmarks."""
