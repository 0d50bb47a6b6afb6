"""Bridges to other libraries of environments and trainers: TRL and OpenEnv."""
