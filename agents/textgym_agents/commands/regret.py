"""Show exactly how far tree search stays below the optimum, by simulations and progressive widening."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Annotated, Protocol, cast

import tyro

from textgym.checks import check_count, check_number
from textgym.commands.console import UsageError, number, output, table, untrusted
from textgym.commands.flags import EnvId, EnvOptions, env_options, find_id, parse
from textgym.prompts import Split
from textgym_agents.mcts.planner import Regret
from textgym_agents.registry import agent_class, make_agent, make_config, make_env


class _Searcher(Protocol):
    def regret(self, split: str) -> Regret: ...


@dataclass(frozen=True)
class RegretFlags:
    """Compare tree search with the optimum of a solvable task: V* minus V of the policy that searches at each token.

    Example: textgym regret Stop-v0 --simulations 4 16 64 --widening 0 1
    """

    id: EnvId
    """A solvable task; a short name is enough."""
    simulations: tuple[int, ...] = (1, 4, 16, 64, 256)
    """Numbers of simulations before each token."""
    widening: tuple[float, ...] = (0.0, 1.0, 2.0)
    """C of progressive widening: C N^widening_power tokens are open after N visits; 0: all candidates are open."""
    settings: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUE")] = ()
    """Other settings of mcts, as in leaf=exact backup=max candidates=16."""
    split: Split = "train"
    """Prompts: train, eval (held-out), or tune (for choosing settings)."""
    env: EnvOptions = ()
    """Options of the task, as in difficulty=2."""
    json: bool = False
    """Print JSON."""

    def __post_init__(self) -> None:
        for name in ("simulations", "widening"):
            if not getattr(self, name):
                raise UsageError(f"--{name}: allowed is one number or more")
        for count in self.simulations:
            check_count("simulations", count)
        for constant in self.widening:
            check_number("widening", constant, 0)


def main(arguments: list[str]) -> None:
    """Run the command."""
    flags = parse(RegretFlags, arguments, "regret")
    settings = env_options(flags.settings, "--settings", taken=())
    if given := sorted({"simulations", "widening"} & settings.keys()):
        raise UsageError(f"--settings {given[0]}: allowed is --{given[0]}, which takes several")
    env_id = find_id(flags.id)
    env = make_env(env_id, 1, **env_options(flags.env))
    rows: list[tuple[int, float, Regret]] = []
    for constant in flags.widening:
        power = {"widening": constant} if constant else {"widening_power": 0.5}
        for count in flags.simulations:
            config = make_config(agent_class("mcts"), {**settings, **power, "simulations": count})
            agent = cast(_Searcher, make_agent("mcts", env, config))
            rows.append((count, constant, agent.regret(flags.split)))
    if flags.json:
        found = [{"simulations": count, "widening": constant, **asdict(each)} for count, constant, each in rows]
        print(json.dumps({"id": env_id, "split": flags.split, "rows": found}, indent=2))
        return
    shown = table(*map(number, ("widening", "simulations", "regret", "V found - V*", "nodes", "scored")))
    for count, constant, each in rows:
        cells = f"{each.regret:z.6f}", f"{each.error:+z.6f}", f"{each.nodes:,}", f"{each.scored:,}"
        shown.add_row(f"{constant:g}" if constant else "off", str(count), *cells)
    console = output()
    console.print(untrusted(f"{env_id}, {flags.split} prompts: V* {rows[0][2].optimum:.4f}, reward units"))
    console.print(shown)
