"""How the processes of a run share the work: one protocol, and an engine for each way."""
