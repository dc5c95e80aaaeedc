"""A recipe -> how much memory and time its run will take, before any weight is read.

workload.py     what there is to do: the heaviest pack, all tokens
simulation.py   that pack through the run's own code, in tensors without numbers: memory
forecast.py     the sum, held against a machine; what would make it fit; time
probe.py        the run itself for a few steps, measured
"""
