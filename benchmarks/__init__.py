"""Measure what training and sampling cost, each figure as a ratio to a plain implementation within one run."""
