"""Addresses of files, as the protocol has them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from codemill.server.serve import _uri


@pytest.mark.skipif(sys.platform == "win32", reason="names of files are of bytes on POSIX")
def test_a_name_that_is_not_utf8_is_an_address_of_its_bytes() -> None:
    assert _uri(Path("/a b/ä.py")) == "file:///a%20b/%C3%A4.py"
    assert _uri(Path(os.fsdecode(b"/a b/bad\xff.py"))) == "file:///a%20b/bad%FF.py"
