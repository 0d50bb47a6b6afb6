"""Episodes of any agent as Minari datasets: recorded, read back, and made into data to learn from."""

from textgym_agents.datasets.reading import Recording, is_recording, read_recording
from textgym_agents.datasets.recording import RecordedEpisode, play_episodes, record

__all__ = ["RecordedEpisode", "Recording", "is_recording", "play_episodes", "read_recording", "record"]
