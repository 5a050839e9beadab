"""From models to restorations, and from these to records."""
