"""The page of one or two episodes: a single file that opens from disk, without a server and without the network."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from markupsafe import Markup

from textgym.files import make_folder, write_text
from textgym.interrupts import disk_full_at
from textgym_benchmarks.microscope.trace import Trace, trace_json
from textgym_benchmarks.pages import assets, environment, is_of_kind, shared_assets

KIND = "microscope"
_PACKAGE = "textgym_benchmarks.microscope"
_CHOSEN = {"sampled": "sampled", "likeliest": "the likeliest tokens", "given": "a given completion"}


Kind = Literal["level", "size", "cost", "signed", "loss"]
"""level: from least to greatest; size: from 0; cost: from 0, and bad; signed: around 0; loss: signed, and bad."""


@dataclass(frozen=True)
class Quantity:
    """One field of a `TokenStep`.

    Attributes:
        name: of the field. label: for people. kind: chooses its colours. group: what it describes.
        meaning: a sentence.
    """

    name: str
    label: str
    kind: Kind
    group: Literal["token", "state", "episode", "solver"]
    meaning: str


QUANTITIES = (
    Quantity("kl", "KL", "size", "state", "KL(π ‖ ref) at this state, over the whole vocabulary, in nats."),
    Quantity(
        "log_ratio", "Log-ratio", "signed", "token",
        "log π(a) - log ref(a), in nats: above 0 where π writes this token more often than the reference.",
    ),
    Quantity("entropy", "Entropy", "size", "state", "Entropy of π at this state, in nats."),
    Quantity("reward", "Reward", "signed", "token", "What the environment pays for this token."),
    Quantity("value", "V", "level", "state", "V(s) by the agent, before the token is written."),
    Quantity(
        "advantage", "Advantage", "signed", "token",
        "What came of this token, less V(s): one sample, made with the agent's own V.",
    ),
    Quantity(
        "regret", "Regret", "loss", "solver",
        "V*(s) - [Q*(s, a) - β log-ratio] = β log(π / π*): above 0 where π writes this token more often than the "
        "optimum does.",
    ),
    Quantity(
        "state_regret", "Regret of the state", "cost", "solver",
        "β KL(π ‖ π*), the mean regret at this state. Summed over an episode it is J* - J on average.",
    ),
    Quantity("optimal_value", "V*", "level", "solver", "Value of this state under the optimum."),
    Quantity("optimal_action_value", "Q*", "level", "solver", "Value of this token under the optimum."),
    Quantity("policy_value", "V of π", "level", "solver", "Exact value of this state under π."),
    Quantity("policy_action_value", "Q of π", "level", "solver", "Exact value of this token under π."),
    Quantity(
        "exact_advantage", "Exact advantage", "signed", "solver",
        "Q of π - β log-ratio - V of π: what this token adds to J; its mean under π is 0.",
    ),
    Quantity("running_return", "Return so far", "level", "episode", "Rewards up to this token."),
    Quantity("running_kl", "KL so far", "size", "episode", "Sum of the KL of the states up to this one, in nats."),
)  # fmt: skip


def write_page(traces: list[Trace], path: Path) -> None:
    """Write the page of one episode, or of two with the same prompt; the file is replaced atomically.

    Raises: as `check_out`; DiskFullError.
    """
    check_out(path)
    with disk_full_at(path):
        make_folder(path.parent)
        write_text(path, page_html(traces))


def check_out(path: Path) -> None:
    """Raise FileExistsError unless a file is a new one, or an earlier page of the microscope."""
    if path.exists() and not is_of_kind(path, KIND):
        what = "a folder" if path.is_dir() else "another file" if path.is_file() else "something that is no file"
        raise FileExistsError(
            f"out {str(path)!r}: there is {what}; allowed are a new name and a page of the microscope"
        )


def page_html(traces: list[Trace]) -> str:
    """Return the page. Only its own scripts may run in it: their digests are in its policy, and nothing is fetched."""
    own, shared = assets(_PACKAGE), shared_assets()
    theme = shared["theme.js"].decode()
    scripts = [own[f"{name}.js"].decode() for name in ("parts", "panel", "microscope")]
    return environment(_PACKAGE).get_template("microscope.html").render(
        kind=KIND,
        style=Markup(shared["base.css"].decode() + own["microscope.css"].decode()),
        theme=Markup(theme),
        scripts=[Markup(script) for script in scripts],
        digests=Markup(" ".join(f"'sha256-{_digest(script)}'" for script in (theme, *scripts))),
        traces=traces,
        first=traces[0],
        data=trace_json(traces) | {"quantities": list(map(asdict, QUANTITIES))},
        columns=[[q for q in QUANTITIES if _known(trace, q)] for trace in traces],
        unknown=_unknown(traces),
        chosen=_CHOSEN[traces[0].chosen],
    )  # fmt: skip


def _known(trace: Trace, quantity: Quantity) -> bool:
    return any(getattr(step, quantity.name) is not None for step in trace.steps)


def _unknown(traces: list[Trace]) -> list[tuple[str, str]]:
    """Return the names of unknown quantities, and why they are, for both agents or one."""
    labels = {quantity.name: quantity.label for quantity in QUANTITIES}
    found: dict[tuple[str, str], list[str]] = {}
    for trace in traces:
        for reason in dict.fromkeys(trace.unknown.values()):
            names = [labels[name] for name, why in trace.unknown.items() if why == reason and name in labels]
            found.setdefault((", ".join(names), reason), []).append(trace.agent)
    return [
        (names if len(agents) == len(traces) else f"{names} of {agents[0]}", reason)
        for (names, reason), agents in found.items()
    ]


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
