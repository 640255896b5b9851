"""Make the demo's embedded base model anew: its corpus and its pre-training."""
