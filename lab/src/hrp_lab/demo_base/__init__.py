"""Make the demo's embedded base model anew: its corpus, its pre-training and its task."""
