"""The core: resource types, validation, planning, cost, the reconcile core, artifacts, the local runner, the CLI.

May import: the standard library, pydantic, yaml, boto3, rich, jinja2, matplotlib (the heavy ones only where used).
Never imports: kopf, torch, modelchain_operator, modelchain_trainer.
"""

__version__ = "0.1.0"
