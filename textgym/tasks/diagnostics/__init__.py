"""Diagnostic tasks: tiny vocabularies, one capability each, the exact optimum within reach of enumeration."""
