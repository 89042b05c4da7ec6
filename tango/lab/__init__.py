"""What measures Tango and trains its small model; nothing of the library needs it."""
