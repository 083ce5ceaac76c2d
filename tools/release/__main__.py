"""python -m tools.release check    say what stands in the way of a release (`make release-check`)
python -m tools.release version  write the package's version wherever it is repeated (`make version`)
"""

from __future__ import annotations

import sys
from pathlib import Path

from tools.release.check import PLACES, NoVersionError, problems, version_of

ROOT = Path(__file__).parents[2]


def main(arguments: list[str]) -> int:
    """Returns 0 if it can be released, or if the version was written."""
    try:
        if arguments == ["version"]:
            for place in PLACES:
                place.write(ROOT, version_of(ROOT))
            return 0
        if arguments == ["check"]:
            return _check()
    except NoVersionError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(__doc__, file=sys.stderr)
    return 64


def _check() -> int:
    found = problems(ROOT)
    for problem in found:
        print(f"- {problem}")
    version = version_of(ROOT)
    print(f"{version} can't be released yet" if found else f"{version} can be released: git tag v{version}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
