"""Grammars as masks: which tokens may come next so that the text can still become a legal one."""

from textgym.grammar.masks import GrammarMask, TokenBytes, json_grammar, regex_grammar, token_bytes

__all__ = ["GrammarMask", "TokenBytes", "json_grammar", "regex_grammar", "token_bytes"]
