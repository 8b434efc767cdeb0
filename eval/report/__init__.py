"""Results as one self-contained HTML page: tables, figures, and the worst cases with their pictures."""
