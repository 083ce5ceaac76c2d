"""The reconcile core: what an observation of a chain means, and what to do about it.

Pure functions over values: no I/O, no clock of their own, the same for the operator and for `modelchain run`.
May import: modelchain's types. Never: kopf, torch, boto3, subprocess, time.
"""
