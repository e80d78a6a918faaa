"""Names that a user types for what the records have."""

import pytest

from lra.errors import UsageError
from reports.selection import resolve_name


@pytest.mark.parametrize("turned", [False, True])
def test_an_exact_title_goes_before_one_that_is_alike_and_two_of_these_are_refused(turned):
    titles = {"local": "Local attention", "my.py:Mine": "LOCAL attention", "full": "Full attention"}
    titles = dict(reversed(titles.items())) if turned else titles
    assert resolve_name("variant", "Local attention", titles) == "local"
    assert resolve_name("variant", "LOCAL attention", titles) == "my.py:Mine"
    assert resolve_name("variant", "full-attention", titles) == "full"
    with pytest.raises(UsageError, match=r"'local-attention' may be any of local, my\.py:Mine; give one of these"):
        resolve_name("variant", "local-attention", titles)
