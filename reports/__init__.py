"""Records in; tables, figures, statistics and a page out. Installed as `lra.reports`; imports are relative inside."""
