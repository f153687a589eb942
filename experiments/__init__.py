"""The MART paper's experiments, one file for each table or figure. CONTRIBUTING.md describes their layout."""
