"""`python -m idgen` is the console command `idgen`."""

import sys

from idgen.cli import main

sys.exit(main())
