"""Manifests as they are posted, each beside the chain that they are made of; `make goldens` writes them anew.

They are read in review: a change that nobody meant shows here.
"""

from __future__ import annotations

from pathlib import Path

import yaml

from modelchain_operator.acceptance import Accepted, accept
from modelchain_operator.jobs import JobDefaults, JobRequest

FOLDER = Path(__file__).parent
CHAINS = sorted(FOLDER.glob("*.chain.yaml"))
CHAIN_UID = "6a2a2c1e-0000-4000-8000-000000000001"


def golden_file(chain: Path) -> Path:
    """Where the manifests of a chain's file stand."""
    return FOLDER / chain.name.replace(".chain.yaml", ".yaml")


def manifests(chain: Path) -> str:
    """What the operator makes for the first attempt of the first stage, in the order in which it does."""
    body = yaml.safe_load(chain.read_text())
    body["metadata"] |= {"uid": CHAIN_UID, "generation": 1}
    accepted = accept(body, default_image=None)
    assert isinstance(accepted, Accepted), accepted
    stage = accepted.chain.stages[0]
    request = JobRequest(stage, accepted.jobs[stage.name], accepted.store, attempt=1, defaults=JobDefaults())
    made = accepted.backend(stage.name).build(request)
    return yaml.dump_all(made, Dumper=_Dumper, sort_keys=False, width=100_000)


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002
        """Master and Worker are alike, and written out."""
        return True
