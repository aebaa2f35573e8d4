"""Evidence: one small script an option or claim, `python -m evidence.NAME`. See evidence/README.md."""
