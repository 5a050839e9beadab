"""From pictures to staged images."""
