"""Labels of jobs and pods, by which whoever looks at a cluster finds those of a chain.

The operator sets them, `modelchain logs` looks for them.
"""

CHAIN_UID = "modelchain.dev/chain-uid"
STAGE = "modelchain.dev/stage"
ATTEMPT = "modelchain.dev/attempt"
CONTAINER = "pytorch"  # the trainer's: PyTorchJob asks for this name
TRAINJOB_CONTAINER = "node"  # in the pods of a TrainJob, which asks for this one
CONTAINERS = (CONTAINER, TRAINJOB_CONTAINER)
