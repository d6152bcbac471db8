"""Code completion: a decoder in segments, its keys and values kept between calls, leaving early where it can.

`decoding.py` is what a manifest says, `parts.py` the graphs, `cache.py` keys and values, `document.py` which tokens
they are of, `loop.py` one token after another, `lookup.py` drafts that cost nothing, `sampling.py` and `ending.py` what
is taken and where it ends, `completer.py` what an app calls.
"""
