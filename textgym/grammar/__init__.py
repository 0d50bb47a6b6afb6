"""Grammars as masks: which tokens may come next so that the text can still become a legal one."""

from textgym.grammar.grammars import json_grammar, regex_grammar
from textgym.grammar.mask import GrammarMask
from textgym.grammar.token_bytes import TokenBytes, token_bytes

__all__ = ["GrammarMask", "TokenBytes", "json_grammar", "regex_grammar", "token_bytes"]
