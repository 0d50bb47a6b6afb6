"""The tasks that come with the package; `builtin.toml` names them."""
