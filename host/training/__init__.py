"""From a network and a source task to a ladder: trained, then pruned rung by rung and retrained."""
