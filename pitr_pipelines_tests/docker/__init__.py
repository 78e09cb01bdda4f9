"""The container stack, brought up on a real Docker engine of its own: `make test-docker`."""
