"""What is installed, what fits together, how to bring it in. Standard library only: `make` runs it on bare Python."""
