"""Where artifacts are kept: S3, or a folder, behind one small interface with conditional writes.

`open_store(ResolvedStore)` gives the store of a chain, `open_location(uri, ResolvedStore)` the store of any
other URI (shards, weights) with the chain's endpoint and credentials. boto3 is imported only where an s3://
URI is opened. May import from modelchain: errors, resolved.
"""

from modelchain.store.base import (
    Bounds,
    ConflictError,
    Credentials,
    Forbidden,
    MissingBucket,
    NotFound,
    ObjectInfo,
    Replaced,
    Store,
    StoreError,
    StoreUnavailable,
    check_key,
    split_uri,
)
from modelchain.store.open import open_location, open_store

__all__ = [
    "Bounds",
    "ConflictError",
    "Credentials",
    "Forbidden",
    "MissingBucket",
    "NotFound",
    "ObjectInfo",
    "Replaced",
    "Store",
    "StoreError",
    "StoreUnavailable",
    "check_key",
    "open_location",
    "open_store",
    "split_uri",
]
