"""`python -m modelchain_trainer`: process 1 of a training pod."""

import sys

from modelchain_trainer.launcher import main

if __name__ == "__main__":
    sys.exit(main())
