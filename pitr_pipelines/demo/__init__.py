"""The demo: servers from nothing, and the story that `make demo` tells."""
