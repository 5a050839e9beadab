"""Samplers and models judged where the truth is known."""
