"""From a measurement and its operator to images; picture files in and out."""
