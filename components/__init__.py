"""Pipeline steps: plain functions from files to files."""
