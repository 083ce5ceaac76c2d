"""What the operator says of itself and of its chains: metrics, Kubernetes Events, logs, and whether it is healthy.

May import kubernetes, settings, and names that jobs, kueue and stores define.
"""
