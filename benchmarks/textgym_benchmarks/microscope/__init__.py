"""The microscope: one episode as the MDP sees it, token by token, as data, as a page and in the terminal."""
