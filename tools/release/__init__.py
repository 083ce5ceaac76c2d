"""Whether this checkout can be released, as `make release-check` asks: one version everywhere, and nothing forgotten.

Reads files and asks git; imports nothing of ModelChain, so that it can look at any checkout.
"""
