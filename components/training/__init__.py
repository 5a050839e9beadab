"""From staged images to models."""
