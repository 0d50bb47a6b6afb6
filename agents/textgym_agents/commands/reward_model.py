"""Trains a reward model on preferences, and says how well it ranks held-out ones."""

from __future__ import annotations

_TEXT = """A reward model from rankings: a transformer with one linear head over the last token.

--data is a file of one JSON object a line: "prompt", "chosen" and "rejected"; or "chosen" and "rejected" as
transcripts that begin alike; or "prompt" and "completions", best first."""

_MEASURES = {
    "accuracy": "accuracy, pairs",
    "log_loss": "log loss, nats",
    "ece": "calibration error (ECE)",
    "length_spearman": "rank correlation with length",
    "longer_accuracy": "accuracy of 'longer is better'",
}


def main(arguments: list[str]) -> None:
    """Runs the command."""
    from textgym.commands.console import output, untrusted, use_all_cores
    from textgym_agents.commands.running import FitDisplay, parse_fit, print_result
    from textgym_agents.rlhf.settings import RewardModelSettings

    settings, given, resume = parse_fit(RewardModelSettings, arguments, "reward-model", _TEXT)
    from textgym_agents.rlhf.reward_model import train_reward_model
    from textgym_agents.training.folder import run_folder

    use_all_cores()
    with run_folder(given, "reward-model") as out, FitDisplay() as display:
        result = train_reward_model(settings, out, display, resume)
    print_result(result, _MEASURES, out)
    for name in (*result["models"], "reliability.png"):
        if (out / name).exists():
            output().print(
                untrusted(f"{'model' if name in result['models'] else 'calibration'}: {out / name}")
            )
