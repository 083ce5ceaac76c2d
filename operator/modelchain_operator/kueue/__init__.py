"""Kueue: whether a queue would hold a job, asked before the job is made, and why one that is held waits.

May import kubernetes and jobs.
"""
