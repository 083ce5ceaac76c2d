"""`python -m modelchain.crd`: the CRD as a manifest; with `--chart`, as a template of the Helm chart."""

from __future__ import annotations

import sys

from modelchain.crd.schema import custom_resource_definition, to_chart_template, to_yaml

if __name__ == "__main__":
    write = to_chart_template if sys.argv[1:] == ["--chart"] else to_yaml
    print(write(custom_resource_definition()), end="")
