"""Says all that is wrong with a chain file at once: where, what, and what to do.

`structure` holds fields and types against the resource, `rules` what the types can't say.
Neither reads shards or opens a store. May import: the rest of the core, yaml, pydantic.
"""

from modelchain.validation.files import CheckedChain, check_file, check_object, load_chains
from modelchain.validation.problem import InvalidChain, Problem

__all__ = ["CheckedChain", "InvalidChain", "Problem", "check_file", "check_object", "load_chains"]
