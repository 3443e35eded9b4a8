"""Other people's calculators, in our own words: `python validation/peers`."""
