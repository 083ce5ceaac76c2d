"""Labels of jobs and pods, by which whoever looks at a cluster finds those of a chain.

The operator sets them, `modelchain logs` looks for them.
"""

CHAIN_UID = "modelchain.dev/chain-uid"
STAGE = "modelchain.dev/stage"
ATTEMPT = "modelchain.dev/attempt"
CONTAINER = "pytorch"  # the trainer's, in every kind of job: PyTorchJob asks for this name
