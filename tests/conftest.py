"""Of all tests."""

from __future__ import annotations

from hypothesis import settings

# the same examples each time, and no time decides
settings.register_profile("fixed", derandomize=True, deadline=None)
settings.load_profile("fixed")
