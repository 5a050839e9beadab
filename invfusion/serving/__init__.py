"""Restoration through HTTP: a small FastAPI application with a page. Needs the extra `serve`."""
