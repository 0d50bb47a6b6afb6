"""Learning from human feedback: fine-tuning on demonstrations, reward models, and their measures."""
