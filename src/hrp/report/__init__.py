"""Tables, figures and pages from records and spectra; nothing here trains."""
