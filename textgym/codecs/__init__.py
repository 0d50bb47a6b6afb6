"""Text to ids and back: one small interface over every kind of tokenizer."""

from textgym.codecs.fast import FastCodec
from textgym.codecs.protocol import Codec, Decoder
from textgym.codecs.slow import SlowCodec
from textgym.codecs.words import WordCodec

__all__ = ["Codec", "Decoder", "FastCodec", "SlowCodec", "WordCodec"]
