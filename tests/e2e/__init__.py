"""`make e2e`: the chart, the images and the quickstart chain on whatever cluster KUBECONFIG names.

A program, not a test of pytest's: `make test` has no cluster of this kind. What it needs and which variables it
knows is said by `python -m tests.e2e --help`.
"""
