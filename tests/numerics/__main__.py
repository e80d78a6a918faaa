"""Update the table that ties the code that computes to `NUMERICS_VERSION`.

python -m tests.numerics                              after NUMERICS_VERSION was raised, or a file is new or gone
python -m tests.numerics 'why the numbers are equal'  after a change that changes no number
"""

import sys

from lra.config.schema import NUMERICS_VERSION
from tests.numerics.sources import TABLE, UpdateError, digests, updated

if __name__ == "__main__":
    try:
        TABLE.write_text(updated(digests(), NUMERICS_VERSION, TABLE.read_text(), " ".join(sys.argv[1:])))
    except UpdateError as error:
        sys.exit(f"Error: {error}")
