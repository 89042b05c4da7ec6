"""The scorecard: does Tango keep its promises on bad files, under kills, in batches, and with hostile inputs?

`command` is behind `tango bench reliability`. Every other module holds the checks of one subject: functions that take a
`Bench` and yield rows of the table.
"""
