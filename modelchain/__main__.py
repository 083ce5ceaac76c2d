"""`python -m modelchain` is the command `modelchain`."""

import sys

from modelchain.cli import main

sys.exit(main())
