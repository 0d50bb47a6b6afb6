"""What agents on a causal LM share: policy, rollout, credit, losses, critic."""
