"""Prefect flows: when and where."""
