"""Logged episodes of any agent: recording, reading, and using them for learning and evaluation."""

from textgym_agents.datasets.reading import Recording, is_recording, read_recording
from textgym_agents.datasets.recording import RecordedEpisode, play_episodes, record, write_log

__all__ = ["RecordedEpisode", "Recording", "is_recording", "play_episodes", "read_recording", "record", "write_log"]
