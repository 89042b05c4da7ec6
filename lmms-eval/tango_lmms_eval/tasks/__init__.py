"""Tasks of our own. lmms-eval looks for them where --include_path says: `python -m tango_lmms_eval.tasks` prints it."""
