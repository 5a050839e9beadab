"""The command `invfusion`."""
