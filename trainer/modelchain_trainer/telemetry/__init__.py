"""What an attempt tells of itself while it runs: progress, metrics, TensorBoard events, services beside the store."""
