"""A student's walk: the demo, one answer under the microscope, an exact optimum, a reward of one's own, a report."""

import json
from itertools import product
from math import exp, isclose, log

from steps import begin, lines, numbers, offline, run, sees, writes

begin("A student: demo, inspect, solve, own reward, report")

run("textgym demo --episodes 2048 --optimum-per-prompt 32 --final-per-prompt 4 --eval-every 0 --prompts 3")
result, metrics = numbers("runs/demo-1/result.json"), lines("runs/demo-1/metrics.jsonl")
before, after = result["before"], result["after"]
sees("16 iterations of 128 episodes", [row["episode"] for row in metrics] == [*range(0, 2049, 128)])
sees("the start is the reference: KL 0", before["eval/kl"] == 0)
gain = after["eval/objective"] - before["eval/objective"]
sees("J rises by more than 0.2", gain > 0.2, round(gain, 3))
low, high = after["eval/optimality_low"], after["eval/optimality_high"]
sees("optimality is well above 0 and below 1", 0.3 < low < high < 1, f"{low:.3f} to {high:.3f}")
sees("J = reward - 0.05 KL", isclose(after["eval/objective"], after["eval/reward"] - 0.05 * after["eval/kl"]))

said = run("textgym eval Helpful-v0 --agent runs/demo-1 --per-prompt 2")
sees("it says how good that is", "optimality" in said and "objective J" in said)

said = run("textgym inspect Helpful-v0 --agent runs/demo-1 --agent reference --seed 3")
offline("inspect-helpful-v0.html", "runs/demo-1", "reference")
trace = json.loads(run("textgym inspect Helpful-v0 --agent runs/demo-1 --seed 3 --json"))["traces"][0]
total = sum(step["kl"] for step in trace["steps"])
sees("the KL of the states adds up", isclose(total, trace["steps"][-1]["running_kl"], rel_tol=1e-9), round(total, 4))
episode = trace["total_return"] - 0.05 * total
sees("its J is its reward - 0.05 KL", isclose(trace["objective"], episode), round(episode, 4))
ratios = [step["log_prob"] - step["log_reference"] - step["log_ratio"] for step in trace["steps"]]
sees("log-ratios are those of the two policies", max(map(abs, ratios)) < 1e-9)

# 32 arms, arm i pays i / 31; the reference is uniform, beta 0.1: J* = beta log mean exp(R / beta).
by_hand = 0.1 * log(sum(exp(10 * arm / 31) for arm in range(32)) / 32)
run("textgym solve Bandit-v0")
found = json.loads(run("textgym solve Bandit-v0 --json"))
sees("J* of Bandit is what a pencil says", isclose(found["objective"], by_hand, rel_tol=1e-9), by_hand)

writes(
    "salt.py",
    """
def polite(prompts, completions, **columns):
    return [0.5 * ("please" in text) + 0.5 * ("salt" in text) for text in completions]
""",
)
tokens = """'tokenizer=["ask","salt","please","stop"]' stop=stop"""
options = f"""--env reward=salt:polite 'prompts=["ask"]' {tokens} max_new_tokens=2"""
texts = [" ".join(words).partition("stop")[0] for words in product(("ask", "salt", "please", "stop"), repeat=2)]
paid = [0.5 * ("please" in text) + 0.5 * ("salt" in text) for text in texts]
best = 0.05 * log(sum(exp(reward / 0.05) for reward in paid) / 16)
found = json.loads(run(f"textgym solve Text-v0 {options} --json"))
sees("J_ref of the own reward is the mean", isclose(found["reference_objective"], sum(paid) / 16), sum(paid) / 16)
sees("J* of the own reward is what a pencil says", isclose(found["objective"], best, rel_tol=1e-9), best)

said = run(f"textgym train Text-v0 {options} --agent rloo --episodes 2048 --batch 64 --out runs/salt")
after = numbers("runs/salt/result.json")["after"]
sees("J is exact, nearly J*, and not above it", 0.9 * best < after["eval/objective"] <= best, after["eval/objective"])
part = (after["eval/objective"] - sum(paid) / 16) / (best - sum(paid) / 16)
sees("optimality is the way gone", isclose(after["eval/optimality"], part, rel_tol=1e-6), part)

run("textgym report runs/demo-1 runs/salt --out report")
offline("report/index.html", "Helpful", "Text", "rloo", "lm-ppo")
print("\nThe student is done.")
