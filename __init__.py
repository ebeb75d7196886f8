"""Midwatch: the night watch over large training runs.

A controller on Ray supervises PyTorch workers, sees what goes wrong, restarts from a healthy
checkpoint and writes down what happened. See docs/ for how the rooms of this package fit together.
"""

__version__ = "0.1.0"
