"""Programs as the runtime sees them: token-exact branches and the host that drives their nodes."""
