"""Adds `optimum-cli quanto`: the `optimum` distribution reads this at every start."""

from optimum.quanto.integrations.optimum_cli import QuantoCommand


REGISTER_COMMANDS = [QuantoCommand]
