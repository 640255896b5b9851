"""Puts HRP inside trainers and tools that people have; each imports its tool when used."""
