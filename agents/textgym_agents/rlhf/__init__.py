"""Learning from human feedback: fine-tuning on demonstrations, reward models, and what they are measured by."""
