"""What a training step needs on a machine that isn't at hand: memory, traffic, time and cost."""
