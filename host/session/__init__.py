"""A device, emulated or at a serial port, learns a target sample by sample, and everything it did is kept."""
