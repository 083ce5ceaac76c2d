"""The Kubernetes operator of ModelChain."""
