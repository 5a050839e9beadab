"""From records to pages, tables and figures."""
