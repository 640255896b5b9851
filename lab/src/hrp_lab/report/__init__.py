"""Tables, figures and pages made from a benchmark's records."""
