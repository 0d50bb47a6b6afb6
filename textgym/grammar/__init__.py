"""Grammars as masks: the next tokens with which the text can still become a legal one."""

from textgym.grammar.masks import GrammarMask, TokenBytes, json_grammar, regex_grammar, token_bytes

__all__ = ["GrammarMask", "TokenBytes", "json_grammar", "regex_grammar", "token_bytes"]
