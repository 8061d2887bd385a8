"""The commands of `mvrec`: one file a command; the only place that sees training and serving together."""
