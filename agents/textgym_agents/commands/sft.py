"""Fine-tunes a language model on demonstrations, and says what it learnt on held-out prompts."""

from __future__ import annotations

_TEXT = """Supervised fine-tuning on demonstrations: loss on the completions' tokens only.

--data is a file of one JSON object a line: "prompt" and "completion", or preferences, whose best answers
count, or world:Helpful and its like, which are demonstrations in the built-in world."""

_MEASURES = {
    "loss": "loss, nats per token",
    "perplexity": "perplexity",
    "token_accuracy": "token accuracy",
}


def main(arguments: list[str]) -> None:
    """Runs the command."""
    from textgym.commands.console import output, untrusted, use_all_cores
    from textgym_agents.commands.running import FitDisplay, parse_fit, print_result
    from textgym_agents.rlhf.settings import SFTSettings

    settings, given, resume = parse_fit(SFTSettings, arguments, "sft", _TEXT)
    from textgym_agents.rlhf.sft import train_sft
    from textgym_agents.training.folder import run_folder

    use_all_cores()
    with run_folder(given, "sft") as out, FitDisplay() as display:
        result = train_sft(settings, out, display, resume)
    print_result(result, _MEASURES, out)
    output().print(untrusted(f"model: {out / 'model'}"))
