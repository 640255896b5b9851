"""This room alone knows how PEFT stores adapters, and how to put a model back as it was."""
