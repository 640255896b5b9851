"""Makes tables, figures and pages from spectra; nothing here trains."""
