"""The stores of all chains: whose rights read which, and what they say of stages, read in threads at a bounded rate.

May import kubernetes, settings and acceptance.
"""
