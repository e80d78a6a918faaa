"""`python -m tests.mutation`: see `tests.mutation.mutations`, which the processes that it starts can import by name."""

import sys

from tests.mutation.mutations import main

sys.exit(main())
