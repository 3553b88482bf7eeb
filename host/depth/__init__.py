"""Shallower networks: what every layer carries is measured, what carries least is removed, what became linear is
folded."""
