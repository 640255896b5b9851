"""Makes tables, figures and pages from a benchmark's records."""
