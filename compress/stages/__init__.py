"""The stages of a run, one module each: what it reads, what it writes, its VERSION, and on what it depends.

A module's `stage(...)` builds a `pipeline.Stage`; the work itself is done by the rooms next door. Raise a
module's VERSION when the same inputs would now give another result.
"""
