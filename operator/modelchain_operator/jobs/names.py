"""Names of jobs and their Services, and the port of a job's rendezvous. The same attempt always has the same."""

from __future__ import annotations

import hashlib
import re

from modelchain.resolved import ChainReference, ResolvedStage

MAX_JOB_NAME = 50  # <job>-worker-4095 is a pod's name and a host name: at most 63
HASH_LENGTH = 8
FIRST_PORT = 20000
PORTS = 10000


def job_name(chain: ChainReference, stage: str, attempt: int) -> str:
    """A DNS-1035 label of at most 50 characters: the chain, cut; the stage; a hash of the attempt."""
    return _name(chain, stage, _hash(chain.uid, stage, str(attempt)))


def service_name(stage: ResolvedStage) -> str:
    """Of the Service that all attempts of one stage share, so that attempts do not leave Services behind."""
    return _name(stage.chain, stage.name, _hash(stage.chain.uid, stage.name, stage.digest, "service"))


def port(stage: ResolvedStage, attempt: int) -> int:
    """The port of the rendezvous: jobs that share a host's network rarely have the same."""
    return FIRST_PORT + int(_hash(stage.chain.uid, stage.name, str(attempt)), 16) % PORTS


def _name(chain: ChainReference, stage: str, suffix: str) -> str:
    room = MAX_JOB_NAME - len(stage) - len(suffix) - 2
    prefix = re.sub(r"[^a-z0-9]+", "-", chain.name.lower()).strip("-")
    if not prefix[:1].isalpha():
        prefix = f"c-{prefix}"
    return f"{prefix[:room].rstrip('-')}-{stage}-{suffix}"


def _hash(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:HASH_LENGTH]
