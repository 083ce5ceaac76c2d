"""The configuration files that the installed open_clip ships."""

from __future__ import annotations

import json
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any


@cache
def stock_configurations() -> dict[str, dict[str, Any]]:
    """open_clip's own files by name, read without importing it (that takes many seconds)."""
    spec = find_spec("open_clip")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent / "model_configs"
    return {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}
