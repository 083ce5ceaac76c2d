"""The CustomResourceDefinition of `ModelChain`: its schema, from the types, and its CEL rules (`make crds`).

May import from modelchain: spec, status.
"""

from modelchain.crd.schema import (
    CRD_NAME,
    Schema,
    custom_resource_definition,
    structural_schema,
    to_chart_template,
    to_yaml,
)

__all__ = [
    "CRD_NAME",
    "Schema",
    "custom_resource_definition",
    "structural_schema",
    "to_chart_template",
    "to_yaml",
]
