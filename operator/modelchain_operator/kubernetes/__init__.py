"""The API server: how it is reached, plain objects in and out, and what its kinds and labels are called.

Imports nothing else of the operator.
"""
