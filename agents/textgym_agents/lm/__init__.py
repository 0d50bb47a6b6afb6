"""The parts that agents on a causal LM share: policy, rollout, formulas, metrics, critic, texts."""
