"""From models and records to registered versions."""
