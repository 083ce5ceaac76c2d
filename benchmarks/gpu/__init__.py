"""What a machine with a GPU is asked: CUDA tests, speed beside open_clip, kernels, memory.

pack.py makes a folder of all that a bare machine without a network lacks; run.py runs there and writes one JSON
file. Each part is a process of its own and records what it has found after each step, so that a part that
fails, or is out of time, loses nobody's results. docs/benchmarks.md says how to use it.
"""
