"""The measurements of a GPU, in order of importance, for a lease of minutes: `python -m benchmarks.lease`."""
