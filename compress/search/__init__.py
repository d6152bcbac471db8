"""Choosing the student's architecture under a budget (Compressor, ASE 2022).

`space.py`: what can be chosen; `cost.py`: what a choice costs; `genetic.py`: the choice.
"""
