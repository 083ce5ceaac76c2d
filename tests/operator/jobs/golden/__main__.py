"""`make goldens`."""

from tests.operator.jobs.golden import CHAINS, golden_file, manifests

for chain in CHAINS:
    golden_file(chain).write_text(manifests(chain))
