"""How the processes of a run share the work."""
