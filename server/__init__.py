"""The coordinator. Cannot read patient data."""
