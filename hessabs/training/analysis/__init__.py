"""Trained runs, read back and looked at: their spectra, and their accuracy under attack."""
