"""The MART paper's experiments, one file a table or figure. CONTRIBUTING.md says how they are laid out."""
