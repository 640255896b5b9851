"""HRP inside the trainers and tools that people already have; each imports its tool when used."""
