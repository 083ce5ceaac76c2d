"""What the API server has of the chains, their jobs and pods: watched, listed from time to time, and kept in memory.

As client-go's informers: watches and listings fill the cache, and put the names of changed chains into the work queue.
May import kubernetes and jobs.
"""
