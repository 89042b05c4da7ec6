"""How `tango-mini` was trained."""
