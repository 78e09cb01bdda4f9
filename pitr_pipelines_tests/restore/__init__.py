"""Tests of restores: where they go, what they fetch, how they recover."""
