"""Predict the memory and time of a run before any weight is read.

workload.py     what the run has to do: its heaviest pack, all its tokens
simulation.py   the memory of a step on that pack, in tensors without data
forecast.py     the total, compared with a machine; what would make the run fit; the time
probe.py        a few real steps of the run, measured
"""
