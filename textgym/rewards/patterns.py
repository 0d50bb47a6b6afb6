"""Pay for texts that match a regular expression in linear time, or keep to a template."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from string import Formatter
from typing import Final, Literal, get_args

from textgym.checks import check_choice, check_flag, shown
from textgym.rewards.base import Column, NamedReward, Rebuilt, import_extra
from textgym.rewards.words import composed

Mode = Literal["full", "search"]

# What re2 writes in its errors -> what its user calls it, and what to do instead.
_CONSTRUCTS: Final = (
    (r"\(\?<[=!]", "lookbehind"),
    (r"\(\?[=!]", "lookahead"),
    (r"\(\?P=|\\[1-9]|\\[gk][<{']", "a backreference"),
    (r"\(\?>", "an atomic group"),
    (r"\(\?\(", "a conditional group"),
    (r"\(\?#", "a comment"),
    (r"\(\?(?:R|[0-9]+|&\w+|P>\w+)\)", "recursion"),
    (r"[*+?}]\+", "a possessive repetition"),
    (r"\\Z", r"\Z (write \z)"),
)

# Of a pattern that re2 takes: every token is a set of characters, literal text, a group's start, an edge, a count, or
# one plain character, which may be an operator.
_TOKEN: Final = re.compile(
    r"""\\Q(?P<quoted>.*?)(?:\\E|\Z)
    | (?P<edge>\\[bBAz])
    | (?P<set>\\[pP](?:\{[^}]*\}|.) | \\x(?:\{[^}]*\}|..) | \\[0-7]{1,3} | \\.
        | \[\^?\]?(?:\[:\^?\w+:\] | \\. | [^\]\\])*\])
    | (?P<group>\(\?P?<\w+> | \(\?[a-zA-Z-]*[:)] | \()
    | (?P<count>\{[0-9]+(?:,[0-9]*)?\})
    | (?P<plain>.)""",
    re.DOTALL | re.VERBOSE,
)
# What other dialects silently read differently; by the token and what follows it.
_AMBIGUOUS: Final = (
    (r"\{,[0-9]*\}", "{,n} is plain text to re2 and a count elsewhere; write {0,n}, or \\{,n} for the text"),
    (r"\[\^?\]", "a class that begins with ] is empty to some engines; write \\]"),
    (r"\\C", r"\C is half a character"),
)


class Regex:
    """A compiled pattern that says of many texts at once whether they match.

    It takes time linear in the length of a text, so there are no backreferences and no lookaround. Digits, word
    characters and word boundaries are those of ASCII; `$` is the end of the text.

    Args:
        pattern: in the syntax of re2 (https://github.com/google/re2/wiki/Syntax).
        mode: "full": the whole text has to match; "search": some part of it.
        ignore_case, dot_all, multi_line: as re2's (and Python's) flags i, s and m.
        argument, reward: what the pattern and the reward that it belongs to are called in messages.
    Raises: ValueError for a pattern that is none, or that re2 cannot express (the construct is named);
        ModuleNotFoundError without google-re2.
    """

    def __init__(
        self,
        pattern: str,
        mode: Mode = "full",
        *,
        ignore_case: bool = False,
        dot_all: bool = False,
        multi_line: bool = False,
        argument: str = "pattern",
        reward: str = "pattern",
    ) -> None:
        if not isinstance(pattern, str) or not pattern:
            raise ValueError(f"{argument}={shown(pattern)}: a text that is not empty is allowed")
        check_choice("mode", mode, get_args(Mode))
        asked = {"ignore_case": ignore_case, "dot_all": dot_all, "multi_line": multi_line}
        for name, value in asked.items():
            check_flag(name, value)
        flags = "".join(letter for letter, on in zip("ism", asked.values(), strict=True) if on)
        try:
            self._find = _compiled(f"(?{flags}){pattern}" if flags else pattern, mode, reward)
        except ValueError as error:
            raise ValueError(f"{argument}={shown(pattern)}: {error}") from error

    def matches(self, texts: list[str]) -> list[bool]:
        """Return whether each text matches; one that cannot be written as UTF-8 (a lone surrogate) does not."""
        found = []
        for text in texts:
            try:
                found.append(self._find(text.encode()) is not None)
            except UnicodeEncodeError:
                found.append(False)
        return found


@lru_cache(maxsize=256)
def _compiled(source: str, mode: Mode, reward: str) -> Callable[[bytes], object]:
    """Return what looks for a pattern in a text. Raises: ValueError that says why it cannot be compiled."""
    re2 = import_extra("re2", f"reward {reward!r}")
    options = re2.Options()
    options.never_capture = True  # faster, and nobody asks for the groups
    options.log_errors = False
    try:
        compiled = re2.compile(source, options)
    except re2.error as error:
        raise ValueError(_reason(error, source)) from error
    except UnicodeEncodeError as error:
        raise ValueError(f"cannot be written as UTF-8 ({error.reason})") from error
    _check_dialect(source)
    find: Callable[[bytes], object] = compiled.fullmatch if mode == "full" else compiled.search
    return find


def pattern_tokens(pattern: str) -> Iterator[tuple[str, str]]:
    """Yield the tokens of a pattern that re2 takes: (kind, text), the kinds being the groups of `_TOKEN`."""
    for found in _TOKEN.finditer(pattern):
        kind = str(found.lastgroup)
        yield kind, found[kind]


def _check_dialect(pattern: str) -> None:
    """Raise ValueError for what engines silently read differently."""
    for found in _TOKEN.finditer(pattern):
        if found.lastgroup in ("plain", "set"):
            for construct, reason in _AMBIGUOUS:
                if re.compile(construct).match(pattern, found.start()):
                    raise ValueError(reason)


def _reason(error: Exception, pattern: str) -> str:
    """Return why re2 refuses a pattern: the construct that it has no linear time for, or its own words."""
    detail = error.args[0] if error.args else ""
    said = detail.decode(errors="replace") if isinstance(detail, bytes) else str(detail)
    kind, _, part = said.partition(": ")
    beyond = kind in ("invalid perl operator", "invalid escape sequence", "bad repetition operator")
    # re2 may name no more than the first characters of the construct, so every place that has them is read.
    places = [found.start() for found in re.finditer(re.escape(part), pattern)] if beyond and part else []
    for construct, name in _CONSTRUCTS:
        if any(re.compile(construct).match(pattern, place) for place in places):
            return (
                f"{name} is not allowed; patterns run on re2, in linear time, which has no backreferences, "
                f"lookaround or the like ({said})"
            )
    return f"not a regular expression of re2 ({said})"


@dataclass(frozen=True)
class Pattern(Rebuilt, NamedReward):
    """Pays 1 for a completion that matches `pattern`, else 0.

    Args:
        pattern, mode, ignore_case, dot_all, multi_line: see `textgym.rewards.patterns.Regex`.
    """

    pattern: str
    mode: Mode = "full"
    ignore_case: bool = False
    dot_all: bool = False
    multi_line: bool = False
    name = "pattern"
    maximum = 1.0

    def __post_init__(self) -> None:
        assert self._regex  # a bad pattern is refused now, not when it is first used

    @cached_property
    def _regex(self) -> Regex:
        return Regex(**asdict(self))

    def __call__(self, prompts: list[str], completions: list[str], **columns: Column) -> list[float]:
        """Score every completion."""
        return [*map(float, self._regex.matches(completions))]


def _pieces(template: object) -> list[tuple[str, str | None]]:
    """Return the fixed parts of a template, composed, each with the name of the slot after it; None at the end.

    Raises: ValueError if it is no text, has no slot, or one that is not a plain name, or twice the same.
    """
    if not isinstance(template, str):
        raise ValueError(f"template={shown(template)}: a text with slots, as 'Answer: {{answer}}', is allowed")
    try:
        parsed = list(Formatter().parse(composed(template)))
    except ValueError as error:
        raise ValueError(
            f"template={shown(template)}: {error}; a slot is {{name}}, a brace itself is {{{{ or }}}}"
        ) from error
    slots = [slot for _, slot, _, _ in parsed if slot is not None]
    if not slots or len(set(slots)) < len(slots):
        raise ValueError(f"template={shown(template)}: its slots are {slots}; at least one, each only once, is allowed")
    for _, slot, form, conversion in parsed:
        if slot is not None and (not slot.isidentifier() or form or conversion):
            raise ValueError(f"template={shown(template)}: the slot {slot!r} is not a plain name, as {{answer}} is")
    return [(text, slot) for text, slot, _, _ in parsed]


def template_regex(template: str) -> str:
    """Return the regular expression of a template: its fixed parts, and at least one character for every slot.

    Only what has a meaning of its own is escaped, so that every dialect reads it alike.
    """
    operator = re.compile(r"[\\.+*?()|\[\]{}^$]")
    return "".join(
        operator.sub(r"\\\g<0>", text) + ("" if slot is None else "(?s:.+)") for text, slot in _pieces(template)
    )


@dataclass(frozen=True)
class Format(Rebuilt, NamedReward):
    """Pays 1 for a completion that is exactly the template with its slots filled in.

    Args:
        template: fixed text with slots in braces, as "<think>{thought}</think><answer>{answer}</answer>"; a
            slot takes any text of at least one character. `{{` and `}}` stand for braces.
        partial: a share, from 0 to below 1, that is paid for what is kept of the template by a completion
            that does not match: partial times the share of the fixed parts that stand in it in order, the
            first one at the start and the last one at the end where the template has them there.
    Raises: ValueError for a template without a slot or with a bad one, or a share out of range.
    """

    template: str
    partial: float = 0.0
    name = "format"
    maximum = 1.0

    def __post_init__(self) -> None:
        if isinstance(self.partial, bool) or not isinstance(self.partial, int | float) or not 0 <= self.partial < 1:
            raise ValueError(f"partial={self.partial!r:.80}: a share from 0 to below 1 is allowed")
        assert self._regex  # a bad template is refused now, not when it is first used

    @cached_property
    def _regex(self) -> Regex:
        return Regex(template_regex(self.template), argument="template", reward=self.name)

    @cached_property
    def _parts(self) -> tuple[str, ...]:
        """The fixed parts; the last one is empty where the template ends in a slot."""
        texts, slots = zip(*_pieces(self.template), strict=True)
        return texts if slots[-1] is None else (*texts, "")

    def __call__(self, prompts: list[str], completions: list[str], **columns: Column) -> list[float]:
        """Score every completion."""
        completions = [composed(text) for text in completions]
        found = self._regex.matches(completions)
        if not self.partial:
            return [*map(float, found)]
        return [
            1.0 if whole else self.partial * self._share(text) for whole, text in zip(found, completions, strict=True)
        ]

    def _share(self, text: str) -> float:
        """Return the share of the fixed parts that stand in the text in order, in [0, 1]: of the most that do."""
        first, *inner, last = self._parts
        fixed = [part for part in self._parts if part]
        begins = [0, *([len(first)] if first and text.startswith(first) else [])]
        ends = [len(text), *([len(text) - len(last)] if last and text.endswith(last) else [])]
        kept = [
            _in_order(text, [part for part in inner if part], start, end) + (start > 0) + (end < len(text))
            for start in begins
            for end in ends
            if start <= end
        ]
        return max(kept) / len(fixed) if fixed else 0.0


def _in_order(text: str, parts: Sequence[str], start: int, end: int) -> int:
    """Return how many of the parts, at most, stand in text[start:end] in their order, none over another."""
    reached = [start]  # where the first so many kept ones end, at the earliest
    for part in parts:
        for kept in reversed(range(len(reached))):
            at = text.find(part, reached[kept], end)
            if at >= 0 and kept + 1 == len(reached):
                reached.append(at + len(part))
            elif at >= 0:
                reached[kept + 1] = min(reached[kept + 1], at + len(part))
    return len(reached) - 1
