"""Results of suites: their format, their store, and the pages made of them."""
