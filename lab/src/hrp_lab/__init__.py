"""The lab of HRP: its theory, its benchmark and their reports."""
