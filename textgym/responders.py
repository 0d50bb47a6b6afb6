"""Who answers the turns of `Text-v0`: tools that the policy calls, scripts, and a deadline for any responder."""

from __future__ import annotations

import ast
import operator
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from math import log
from typing import Final

from textgym.checks import check_number, shown
from textgym.registry import RESPONDERS, load_target
from textgym.rewards.base import RewardError, import_extra
from textgym.rewards.deadline import MOST_SECONDS, Called, Deadline
from textgym.rewards.registry import RewardSpec, make
from textgym.turns import Messages, ReplyFunction

ToolFunction = Callable[[str], object]
"""Takes what stands in a call, and returns the result, which becomes a text."""
MOST_CHARACTERS: Final = 200
"""Of an expression."""
SECONDS: Final = 5.0
"""The time that a call of the tool `python` has."""
LEAST_SECONDS: Final = 1e-3
_MOST_RESULT: Final = 4000  # characters; what is too long for a reply is cut further
_FACTS: Final = 3
_COMMON: Final = 4  # a word in one statement of so many says nothing of what is looked for
_BINARY: Final[dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_PYTHON: Final = (ast.Expression, ast.BinOp, ast.UnaryOp, ast.Compare, ast.operator, ast.unaryop, ast.cmpop)


class Within:
    """A function with a deadline: it runs in a child process, which is killed when a call takes too long.

    Args:
        function: picklable, so defined at the top level of a module.
        seconds: limit of one call, from a thousandth to a million.
        kind, name: what messages call it.
    Raises: ValueError for a bad limit or a function that cannot be pickled.
    """

    def __init__(self, function: Callable[..., object], seconds: float, kind: str, name: str) -> None:
        self._deadline = Deadline(
            Called(function, name), check_number("seconds", seconds, LEAST_SECONDS, MOST_SECONDS), kind
        )

    def __call__(self, *arguments: object, **options: object) -> object:
        """Call the function.

        Raises: TimeoutError when it takes too long; RuntimeError for whatever it raises.
        """
        try:
            return self._deadline.call("run", {"arguments": arguments, "options": options})
        except RewardError as error:
            kind = TimeoutError if error.kind == "timeout" else RuntimeError
            raise kind(str(error)) from error.__cause__


class WithDeadline:
    """Any responder with a deadline; it runs in a child process, which is killed when it takes too long.

    Args:
        responder: as the option of `Text-v0`; picklable.
        seconds: limit of one call, whatever the number of conversations; from a thousandth to a million.
    Raises: as `Within`.
    """

    def __init__(self, responder: RewardSpec, seconds: float = 10.0) -> None:
        reply: ReplyFunction = make(RESPONDERS, responder, "responder")
        for name in ("weights", "asks", "cuts", "closing"):
            if hasattr(reply, name):
                setattr(self, name, getattr(reply, name))
        self._reply = Within(reply, seconds, "responder", getattr(reply, "__name__", type(reply).__name__))

    def __call__(self, conversations: Sequence[Messages], **options: object) -> object:
        """Return the replies. Raises: TimeoutError when it takes too long; RuntimeError for whatever it raises."""
        return self._reply(conversations, **options)


class Script:
    """A user who says the same texts in every conversation, whatever the policy says, and then leaves.

    Args:
        texts: the user's messages behind the prompt, in order.
    Raises: ValueError unless they are texts.
    """

    asks = ("replies",)

    def __init__(self, texts: Sequence[str]) -> None:
        if isinstance(texts, str) or not all(isinstance(text, str) and text for text in texts):
            raise ValueError(f"texts={shown(texts)}: allowed is a list of texts that are not empty")
        self._texts = tuple(texts)

    def __call__(self, conversations: Sequence[Messages], replies: Sequence[int]) -> list[str | None]:
        """Return the next text for each conversation, None behind the last.

        Args:
            conversations: B. replies: B, how many the environment has written.
        """
        return [self._texts[said] if said < len(self._texts) else None for said in replies]


class Tools:
    """Tools that the policy calls by writing `<NAME>what it asks</NAME>`; the reply is the result, or an error's text.

    The first call of a turn is answered; a turn without any is the policy's answer and ends the episode. A turn
    ends at the call's closing tag where that is one token of the vocabulary, else as every turn does: by a stop id or
    its budget.

    Args:
        tools: names among "calc", "facts" and "python"; or name -> such a name, "module:function" or a function that
            takes a text. A name is made of letters, digits and underscores.
        seconds: limit of one call of any tool, which then runs in a child process and has to be picklable; None: none
            but for "python", which has 5 seconds.
    Raises: ValueError for another tool or limit; ModuleNotFoundError for "python" without the package simpleeval.
    """

    cuts = True

    def __init__(
        self, tools: Sequence[str] | Mapping[str, str | ToolFunction] = ("calc",), seconds: float | None = None
    ) -> None:
        named = (
            tools if isinstance(tools, Mapping) else {} if isinstance(tools, str) else {name: name for name in tools}
        )
        if not named or not all(isinstance(name, str) and re.fullmatch(r"\w+", name) for name in named):
            raise ValueError(
                f"tools={shown(tools)}: allowed are names among {', '.join(BUILTIN)}, or name -> a function, the names "
                "made of letters, digits and underscores"
            )
        self._tools = {name: _made(name, tool, seconds) for name, tool in named.items()}
        self.closing = tuple(f"</{name}>" for name in named)
        self._call = re.compile(rf"<({'|'.join(named)})>(?:(.*?)</\1>)?", re.DOTALL)

    def __call__(self, conversations: Sequence[Messages]) -> list[str | None]:
        """Return what the tools say to the last message of each conversation; None where it calls none."""
        return [self._answer(messages[-1]["content"]) for messages in conversations]

    def _answer(self, text: str) -> str | None:
        call = self._call.search(text)
        if call is None:
            return None
        name, asked = call.groups()
        if asked is None:
            return f"error: <{name}> without </{name}>"
        try:
            found = self._tools[name](asked.strip())
        except TimeoutError as error:
            found = f"error: {error}"
        except RuntimeError as error:
            if error.__cause__ is None:  # the process could not be started, which is no fault of the policy's
                raise
            found = f"error: {error}"
        return str(found)


@dataclass(frozen=True)
class Tool:
    """A tool whose errors are texts.

    Args:
        name: for the policy. function: what it does.
    """

    name: str
    function: ToolFunction

    def __call__(self, asked: str) -> str:
        """Return the result as a text that is not empty, or the error's."""
        try:
            found = str(self.function(asked))
        except (Exception, SystemExit) as error:
            found = f"error: {str(error) or type(error).__name__}"
        return found[:_MOST_RESULT].encode("utf-8", "replace").decode().strip() or "(nothing)"


def _made(name: str, tool: str | ToolFunction, seconds: float | None) -> Callable[[str], object]:
    function = tool
    if isinstance(tool, str):
        if tool not in BUILTIN and ":" not in tool:
            raise ValueError(f"tools: {tool!r} is none; allowed are {', '.join(BUILTIN)} and module:function")
        function = BUILTIN[tool] if tool in BUILTIN else load_target(tool, "tools")
    if not callable(function):
        raise ValueError(f"tools: {name!r} is {shown(tool)}; allowed is a function, or the name of one")
    made = Tool(name, function)
    if function is evaluate:
        import_extra("simpleeval", "tool 'python'")
        seconds = SECONDS if seconds is None else seconds
    return made if seconds is None else Within(made, seconds, "tool", name)


def calculate(expression: str) -> str:
    """Return the value of an expression.

    Args:
        expression: numbers, + - * / and parentheses, at most 200 characters.
    Returns: a whole number, or ten digits of another.
    Raises: ValueError for anything else, and for a division by zero.
    """
    if len(expression) > MOST_CHARACTERS or not re.fullmatch(r"[0-9+\-*/(). ]+", expression):
        raise ValueError(f"allowed are numbers, + - * / and parentheses, at most {MOST_CHARACTERS} characters")
    try:
        value = _value(ast.parse(expression.strip(), mode="eval").body, expression.strip())
    except ZeroDivisionError:
        raise ValueError("division by zero") from None
    except (SyntaxError, RecursionError, MemoryError, OverflowError):
        raise ValueError("this is no expression") from None
    return str(value.numerator) if value.denominator == 1 else f"{float(value):.10g}"


def _value(node: ast.expr, source: str) -> Fraction:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return Fraction(ast.get_source_segment(source, node) or "")  # a float would hold 16 digits
    if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        return _BINARY[type(node.op)](_value(node.left, source), _value(node.right, source))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.UAdd | ast.USub):
        value = _value(node.operand, source)
        return -value if isinstance(node.op, ast.USub) else value
    raise ValueError("this is no expression of numbers, + - * / and parentheses")


def evaluate(expression: str) -> str:
    """Return the value of a Python expression of numbers and operators. It may take long: give it a deadline.

    Args:
        expression: at most 200 characters.
    Returns: as Python writes it.
    Raises: ValueError for an expression with names, calls or texts; whatever evaluating it raises;
        ModuleNotFoundError without the package simpleeval.
    """
    simpleeval = import_extra("simpleeval", "tool 'python'")
    if len(expression) > MOST_CHARACTERS:
        raise ValueError(f"allowed are at most {MOST_CHARACTERS} characters")
    try:
        tree = ast.parse(expression, mode="eval")
    except (SyntaxError, ValueError):
        raise ValueError("this is no expression") from None
    for node in ast.walk(tree):
        if not isinstance(node, _PYTHON) and not (isinstance(node, ast.Constant) and type(node.value) in (int, float)):
            raise ValueError("allowed are numbers and operators")
    return repr(simpleeval.SimpleEval(functions={}, names={}).eval(expression, previously_parsed=tree.body))


def look_up(query: str) -> str:
    """Return the statements of the built-in world that are nearest to a query.

    Args:
        query: words; the rarer a word is among the statements, the more it counts.
    Returns: at most three sentences, the nearest first, or that nothing was found.
    """
    statements, weight = _statements()
    asked = _words(query)
    scores = {text: sum(weight[word] for word in words & asked) for text, words in statements.items()}
    nearest = sorted((text for text in scores if scores[text] > 0), key=lambda text: -scores[text])
    return " ".join(nearest[:_FACTS]) or "nothing was found"


@cache
def _statements() -> tuple[dict[str, frozenset[str]], dict[str, float]]:
    """Return statement -> its words, those of its other form and its relation included, and word -> its weight."""
    from textgym.world.facts import FACTS

    found = {}
    for fact in FACTS:
        forms = [frame.replace("{x}", fact.subject).replace("{y}", fact.answer) for frame in fact.relation.frames]
        found[forms[0]] = _words(" ".join([*forms, fact.relation.name]))
    counts = Counter(word for words in found.values() for word in words)
    most = len(found) / _COMMON
    return found, {word: log(len(found) / n) if n <= most else 0.0 for word, n in counts.items()}


def _words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", text.lower()))


BUILTIN: Final[Mapping[str, ToolFunction]] = {"calc": calculate, "facts": look_up, "python": evaluate}
"""The tools that have a name."""
