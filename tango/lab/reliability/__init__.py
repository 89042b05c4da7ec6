"""The scorecard: does Tango keep its promises on bad files, under kills, in batches, and with hostile inputs?

`command` is behind `tango bench reliability`; each other module holds the checks of one subject, as functions that take
a `Bench` and yield rows of the table.
"""
