"""The lab of HRP holds its theory, its benchmark and their reports."""
