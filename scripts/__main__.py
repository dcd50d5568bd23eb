"""Lists the commands of this package, or runs the one that is named."""

import sys

from tools._cli import run_package

sys.exit(run_package(__package__))
